"""Messages about a caller's mistake, in one line."""

from __future__ import annotations

import difflib
import re

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from saematch.app.configuration import known_keys
from saematch.app.renaming import renamed
from saematch.core.errors import InputError
from saematch.core.files import PRESETS
from saematch.core.safe_text import visible

MISTAKES = (HydraException, OmegaConfBaseException, yaml.YAMLError, InputError)
"""Errors that a caller's mistake raises. Any other error is a bug and shows its traceback."""

_LAUNCHER = re.compile(
    r"class : 'hydra_plugins\.hydra_(\w+)_launcher\.|(?:find|load) 'hydra/launcher/(submitit)_"
)
"""Hydra's message about a launcher whose package is missing."""


_TARGET = re.compile(r"Error loading '([^']+)'")
"""Hydra's message about a ``_target_`` that it cannot import."""


def one_line(error: BaseException) -> str:
    """Return the caller's mistake without Hydra's wrapper, as one line that is safe to print."""
    return visible(_sentence(error))


def _sentence(error: BaseException) -> str:
    key = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = key or str(error).rpartition("full_key: ")[2]
        error = error.__cause__
    if isinstance(error, ImportError) and (target := _TARGET.match(str(error))):
        return _not_imported(f"{key}._target_={target[1]}", target[1], error.__cause__)
    while isinstance(error, InterpolationResolutionError) and error.__context__ is not None:
        error = error.__context__  # the error of one of our resolvers
    if launcher := _LAUNCHER.search(str(error)):
        name = launcher[1] or launcher[2]
        extra = {"submitit": "slurm"}.get(name, name)
        return f"hydra/launcher={name} is not installed: pip install 'saematch[{extra}]'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"there is no {group}={name}: choose one of {', '.join(error.options)}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    absent = re.search(r"Could not load '(\w+)/([^']+)'", text)
    if absent and (PRESETS / absent[1]).is_dir():  # one of a list of presets
        names = ", ".join(sorted(path.stem for path in (PRESETS / absent[1]).glob("*.yaml")))
        return f"there is no {absent[1]}={absent[2]}: choose among {names}"
    if text.startswith(("mismatched input", "no viable alternative", "token recognition")):
        quoted = "'sae.path=\"saes/layer_{layer}\"'"
        return (
            f"{text.partition(' See ')[0]}: a value with other characters needs quotes, as {quoted}"
        )
    old = re.match(r"(In '[^']+': )Could not override '([^']+)'", text)
    if old and (sentence := renamed(f"{old[2]}=...")):
        return old[1] + sentence
    missing = re.match(r"(In '[^']+': )Could not find '(\w+)/(\w+)'", text)
    if missing and (sentence := renamed(f"{missing[2]}={missing[3]}")):
        return missing[1] + sentence
    if "Cannot merge DictConfig with ListConfig" in text:
        return (
            f"{text.partition(':')[0]}: a list where named parts are expected. Choose evaluations "
            "and arms in the defaults, as in 'defaults: [override /evaluations: [skipping]]'"
        )
    unknown = re.match(r"Could not override '([^']+)'", text)
    chosen = unknown and re.match(r"evaluations\.(\w+)\.", unknown[1])
    if unknown and chosen:
        return (
            f"{unknown[1]}: the evaluation {chosen[1]} is not chosen, or has no such setting: "
            f"choose it with evaluations=[...,{chosen[1]}]"
        )
    if unknown:
        close = difflib.get_close_matches(unknown[1], known_keys(), n=1)
        close = ["+experiment"] if unknown[1] == "experiment" else close
        close = ["intervals.n_replicates"] if unknown[1].startswith("bootstrap") else close
        hint = f"did you mean {close[0]}?" if close else "see python -m saematch --help"
        return f"there is no setting {unknown[1]!r}; {hint}"
    return text or type(error).__name__


def _not_imported(setting: str, target: str, cause: BaseException | None) -> str:
    package = target.partition(".")[0]
    sentence = f"{setting}: cannot import it ({type(cause).__name__}: {cause})"
    if isinstance(cause, ModuleNotFoundError) and cause.name == package:
        sentence += (
            f": install the package {package}, add its folder to PYTHONPATH, or start saematch in "
            "the folder that holds it"
        )
    return " ".join(sentence.split())

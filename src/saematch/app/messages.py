"""Messages about a caller's mistake, in one line."""

from __future__ import annotations

import difflib
import re

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from saematch.app.configuration import known_keys
from saematch.app.renaming import renamed
from saematch.app.text import HELP, suggested
from saematch.core.errors import InputError
from saematch.core.files import PRESETS
from saematch.core.safe_text import visible

MISTAKES = (HydraException, OmegaConfBaseException, yaml.YAMLError, InputError)
"""Errors that a caller's mistake raises. Any other error is a bug and shows its traceback."""

_LAUNCHER = re.compile(
    r"class : 'hydra_plugins\.hydra_(\w+)_launcher\.|(?:find|load) 'hydra/launcher/(submitit)_"
)
"""Hydra's message about a launcher whose package is missing."""


_MISSING = re.compile(r"(?:Missing mandatory value|MissingMandatoryValue.*): ([\w.]+)")
"""OmegaConf's message about a setting that its preset leaves to the user."""
EXAMPLES = {
    "dataset.paths": "dataset.paths=[texts.jsonl]",
    "explain.path": "'explain.path=\"labels/layer_{layer}.jsonl\"'",
    "model.path": "model.path=FOLDER",
    "pairing.pairs": "pairing.pairs=[3:5,default/4:wide/4]",
    "pairing.starts": "pairing.starts=[1,3]",
    "pairing.target": "pairing.target=SUITE, where +sae@suites.SUITE=disk adds a suite",
    "sae.id_template": "'sae.id_template=\"layer_{layer}/width_16k/canonical\"'",
    "sae.path": "'sae.path=\"my_saes/layer_{layer}\"'",
    "sae.release": "sae.release=NAME; saematch saes lists the names",
}
"""An example of each setting that has no default."""

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
        return _no_preset(group, name, "one of", list(error.options))
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if missing_value := _MISSING.match(text):
        return _not_set(missing_value[1])
    absent = re.search(r"Could not load '(\w+)/([^']+)'", text)
    if absent and (PRESETS / absent[1]).is_dir():  # one of a list of presets
        names = sorted(path.stem for path in (PRESETS / absent[1]).glob("*.yaml"))
        return _no_preset(absent[1], absent[2], "among", names)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot parse {error.override}: check its brackets; a value with other characters "
            "needs quotes, as 'sae.path=\"saes/layer_{layer}\"'"
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
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown(unknown[1])
    return text or type(error).__name__


def _not_set(key: str) -> str:
    """Return the message for a setting without a default; ``suites.b.path`` is a ``sae.path``."""
    group = {"suites": "sae", "models": "model"}.get(key.partition(".")[0])
    alike = f"{group}.{key.rpartition('.')[2]}" if group else key
    example = EXAMPLES.get(alike, f"{alike}=VALUE").replace(f"{alike}=", f"{key}=")
    return f"{key} has no default: set it, as {example}"


def _unknown(key: str) -> str:
    """Return the message for a setting that the chosen presets do not have."""
    group, _, name = key.partition(".")
    if group == "evaluations" and "." in name:
        chosen = name.partition(".")[0]
        return (
            f"{key}: the evaluation {chosen} is not chosen, or has no such setting: "
            f"choose it with evaluations=[...,{chosen}]"
        )
    if having := _presets_with(group, name.partition(".")[0]):
        choices = ", ".join(f"{group}={preset}" for preset in having)
        return f"{key}: the chosen {group} has no such setting; these have it: {choices}"
    close = difflib.get_close_matches(key, known_keys(), n=1)
    close = ["+experiment"] if key == "experiment" else close
    close = ["intervals.n_replicates"] if key.startswith("bootstrap") else close
    hint = f"did you mean {close[0]}?" if close else HELP
    return f"there is no setting {key!r}; {hint}"


def _presets_with(group: str, name: str) -> list[str]:
    """Return the presets of a group that have a setting of this name."""
    paths = sorted((PRESETS / group).glob("*.yaml"))
    return [p.stem for p in paths if name in (yaml.safe_load(p.read_text(encoding="utf-8")) or ())]


def _no_preset(group: str, name: str, among: str, names: list[str]) -> str:
    close = suggested(name, names)
    hint = f"; did you mean {close}? Choose" if close else ": choose"
    return f"there is no {group}={name}{hint} {among} {', '.join(names)}"


def _not_imported(setting: str, target: str, cause: BaseException | None) -> str:
    package = target.partition(".")[0]
    sentence = f"{setting}: cannot import it ({type(cause).__name__}: {cause})"
    if isinstance(cause, ModuleNotFoundError) and cause.name == package:
        sentence += (
            f": install the package {package}, add its folder to PYTHONPATH, or start saematch in "
            "the folder that holds it"
        )
    return " ".join(sentence.split())

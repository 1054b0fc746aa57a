"""The command ``python -m saematch``. The only file that knows Hydra."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from saematch.experiment import Experiment

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "conf"
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")
"""Absolute, so that a checkout, an installed wheel and the console script all find it."""

# Files in conf/hydra/launcher have the names of the plugins' launchers on purpose
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore")

REFERRED = ("run_id", "matching", "assignment", "setting")
"""Settings that are no part of a run themselves: other settings refer to them."""

MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError)
"""What a caller's mistake ends in; anything else is ours and shows its traceback."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def _run(config: DictConfig) -> None:
    from saematch.report.terminal import print_results
    from saematch.run import run

    try:
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        results = run(*_built(config), folder)
    except MISTAKES as error:  # leave before Hydra prints its own lines about them
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {one_line(error)}")
    print_results(results, folder)


def _built(config: DictConfig) -> tuple[Experiment, dict[str, Any]]:
    from saematch.experiment import Experiment

    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    parts = hydra.utils.instantiate(config, _convert_="object")
    for name in REFERRED:
        del parts[name]
    fields = [field.name for field in dataclasses.fields(Experiment)]
    unknown = [name for name in parts if name not in fields]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r}; see python -m saematch --help")
    if isinstance(parts["second_judge"], str):
        chosen = parts["second_judge"]
        raise ValueError(f"second_judge={chosen}: it is chosen by judge@second_judge={chosen}")
    return Experiment(**parts), resolved


def build(overrides: list[str]) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment that the settings of a command line make, and its configuration."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return _built(hydra.compose("config", overrides))


_KEY = re.compile(
    r"\b(api_?key|key|secret|password|token)[=:]|key_variable=.*[^\w,]|\bsk-[\w-]{16}|(://|base_url=)[^/]*@",
    re.IGNORECASE,
)
"""What looks like a key in an argument."""

_LAUNCHER = re.compile(
    r"class : 'hydra_plugins\.hydra_(\w+)_launcher\.|(?:find|load) 'hydra/launcher/(submitit)_"
)
"""What Hydra says of a launcher whose package is missing."""


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 1."""
    if any(_KEY.search(argument) for argument in sys.argv[1:]):  # Hydra would write it to a file
        sys.exit(
            "saematch: no key or password is taken from the command line: put it into an "
            "environment variable, and that one's name into judge.key_variable"
        )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of Hydra's printer
    try:
        if sys.argv[1:2] == ["reproduce"]:
            from saematch.reproduce import main as reproduce

            reproduce(sys.argv[2:])
        elif sys.argv[1:2] == ["saes"]:
            from saematch.saes import main as saes

            saes(sys.argv[2:])
        else:
            _run()
    except MISTAKES as error:
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {one_line(error)}")
    except RuntimeError as error:
        if "Unknown plugin class" not in str(error):
            raise
        sys.exit(f"saematch: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("saematch: interrupted; the same command goes on where it stopped")


def one_line(error: BaseException) -> str:
    """Return what the caller did wrong, without what Hydra wraps around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if launcher := _LAUNCHER.search(str(error)):
        name = launcher[1] or launcher[2]
        return f"hydra/launcher={name} is not installed: pip install hydra-{name}-launcher"
    if isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file).rsplit("/", 1)
        return f"there is no {wanted[0]}={wanted[-1]}: choose one of {', '.join(error.options)}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if text.startswith(("mismatched input", "no viable alternative", "token recognition")):
        quoted = "'sae.path=\"saes/layer_{layer}\"'"
        return f"{text.partition(' See ')[0]}: a value with other signs wants quotes, as {quoted}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], _known_keys(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see python -m saematch --help"
        return f"there is no setting {unknown[1]!r}; {hint}"
    return text or type(error).__name__


def _known_keys() -> list[str]:
    """Return every setting and config group."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("config"), resolve=False)
    keys, todo = [], [("", config)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{k}" if prefix else str(k), inner) for k, inner in value.items()]
        if prefix:
            keys.append(prefix)
    return [*keys, *(path.name for path in Path(CONF).iterdir() if path.is_dir())]

"""The command ``python -m saematch``. The only file that knows Hydra."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "conf"
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")
"""Absolute, so that a checkout, an installed wheel and the console script all find it."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def _run(config: DictConfig) -> None:
    from saematch.run import Experiment, run

    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    experiment = Experiment(**hydra.utils.instantiate(config, _convert_="object"))
    folder = Path(HydraConfig.get().runtime.output_dir)
    run(experiment, resolved, Path(os.path.relpath(folder)))


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of Hydra's printer
    try:
        _run()
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {_one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("saematch: interrupted; the same run_id goes on where it stopped")


def _one_line(error: BaseException) -> str:
    """Return what the caller did wrong, from the error at the root of Hydra's wrapping."""
    while error.__cause__ is not None and isinstance(error, HydraException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key", "object_type"))]
    text = " ".join(lines) if lines else type(error).__name__
    key = (
        text.split("Could not override '")[-1].split("'")[0] if "Could not override" in text else ""
    )
    if key:
        close = difflib.get_close_matches(key, _known_keys(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see python -m saematch --help"
        return f"there is no setting {key!r}; {hint}"
    return text


def _known_keys() -> list[str]:
    """Return every setting and config group."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(compose("config"), resolve=False)
    keys, todo = [], [("", config)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{k}" if prefix else str(k), inner) for k, inner in value.items()]
        if prefix:
            keys.append(prefix)
    return [*keys, *(path.name for path in Path(CONF).iterdir() if path.is_dir())]

"""Build an ``Experiment`` from settings: compose the configuration with Hydra, then check it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict

from saematch.app.renaming import refuse_old_names, refuse_old_presets
from saematch.app.secrets import refuse_secrets
from saematch.core.errors import InputError
from saematch.core.files import PRESETS
from saematch.core.specs import check_fields
from saematch.runs.run_folders import new_run_id, run_folder

if TYPE_CHECKING:
    from saematch.runs.experiment import Experiment

log = logging.getLogger(__name__)

CONF = str(PRESETS)

# Files in conf/hydra/launcher share the names of the plugins' launchers on purpose
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore")

OmegaConf.register_new_resolver("new_run_id", new_run_id, use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *names: str(run_folder(*names)), replace=True)

REFERRED = ("run_id", "objective", "matcher", "setting")
"""Settings that only other settings refer to; ``Experiment`` does not receive them."""


def build(
    overrides: list[str], config_dir: Path | None = None
) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment that a command line specifies, and its configuration.

    ``config_dir`` is a folder of the user's presets.
    """
    refuse_secrets(overrides)
    refuse_old_names(overrides)
    GlobalHydra.instance().clear()
    check_choices(overrides)
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        settings = [*overrides, *search_path(config_dir)]
        config = hydra.compose("config", settings, return_hydra_config=True)
    hydra_config = config.hydra
    with open_dict(config):
        del config["hydra"]
    return built(config, hydra_config)


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--config-dir``, whose value ``config_dir_of`` checks."""
    parser.add_argument(
        "--config-dir", type=Path, action="append", default=[], metavar="DIR",
        help="folder of your own presets, with the same subfolders as saematch's conf/: "
        "DIR/matcher/top.yaml is chosen by matcher=top",
    )  # fmt: skip


def whole_number(least: int, text: str) -> int:
    """Return the number that an option's value states, for ``argparse``."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least {least}")
    return int(text)


def config_dir_of(folders: Sequence[Path]) -> Path | None:
    """Return the folder in the values of ``--config-dir``, None without one.

    ``InputError`` for several folders, and for a folder that does not exist.
    """
    if len(folders) > 1:
        raise InputError(
            f"--config-dir was given {len(folders)} times ({', '.join(map(str, folders))}): put "
            "all presets into one folder"
        )
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: there is no such folder")
        return folder
    return None


def without_config_dir(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the folder that ``--config-dir`` names among the words, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_config_dir(parser)
    try:
        options, others = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    return config_dir_of(options.config_dir), others


def is_hydra_setting(setting: str) -> bool:
    """Return whether a setting is one of Hydra's own, such as ``hydra/launcher=joblib``."""
    return setting.lstrip("+~").startswith(("hydra.", "hydra/"))


def search_path(config_dir: Path | None) -> list[str]:
    """Return Hydra's setting that adds the presets in ``config_dir``."""
    if config_dir is None:
        return []
    return [f"hydra.searchpath=[{quoted(f'file://{config_dir.absolute()}')}]"]


def built(config: DictConfig, hydra_config: DictConfig) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and its configuration together with the chosen presets."""
    from saematch.runs.experiment import Experiment

    refuse_old_presets(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    run_folder(config.name, config.run_id)
    _leave_unchosen(config)
    _rename_models(config, hydra_config.overrides.task)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    fields = [field.name for field in dataclasses.fields(Experiment)]
    _check_settings(Experiment, fields, resolved, hydra_config.overrides.task)
    resolved["overrides"] = list(hydra_config.overrides.task)
    choices = OmegaConf.to_container(hydra_config.runtime.choices)
    assert isinstance(choices, dict)
    chosen = {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")}
    resolved["choices"] = {**chosen, "arms": list(resolved["arms"])}
    if resolved["evaluations"]:
        resolved["choices"]["evaluations"] = list(resolved["evaluations"])
    parts = _instantiated(config)
    for name in REFERRED:
        del parts[name]
    return Experiment(**parts), resolved


def _leave_unchosen(config: DictConfig) -> None:
    """Remove settings that a preset makes for an evaluation that the run does not choose."""
    evaluations = config.get("evaluations")
    if not isinstance(evaluations, DictConfig):
        return
    for name in [str(name) for name in evaluations]:
        if isinstance(evaluations[name], DictConfig) and "_target_" not in evaluations[name]:
            with open_dict(evaluations):
                del evaluations[name]
            log.info("evaluations.%s: not chosen, so its settings are not used", name)


def _rename_models(config: DictConfig, overrides: Sequence[str]) -> None:
    """Name a model by its path if the overrides set its path, but not its name.

    Otherwise it would have the name of the model in its preset.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    for key in keys:
        model = re.fullmatch(r"(model|models\.\w+)\.path", key)
        if model and f"{model[1]}.name" not in keys:
            OmegaConf.update(config, f"{model[1]}.name", OmegaConf.select(config, key))


def _instantiated(config: DictConfig) -> dict[str, Any]:
    """Return the parts of an experiment.

    Hydra wraps every error. An error inside the code of a class is raised without the wrapper. The
    wrapper stays around ``InputError`` and errors of Hydra itself, such as an unknown class.
    """
    try:
        return hydra.utils.instantiate(config, _convert_="object")
    except InstantiationException as wrapped:
        cause = wrapped.__cause__
        if cause is None or isinstance(cause, InputError) or _is_hydra_error(cause):
            raise
        cause.add_note(f"in stage configuration, {str(wrapped).splitlines()[-1]}")
    raise cause


def _is_hydra_error(error: BaseException) -> bool:
    """Return whether Hydra raised the error, or Python did when Hydra called the class."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith(("hydra.", "omegaconf."))


def _check_settings(
    experiment: type[Experiment],
    fields: Sequence[str],
    resolved: Mapping[str, Any],
    overrides: Sequence[str],
) -> None:
    """Refuse settings that are unknown, missing, of a wrong type or without effect."""
    for override in overrides:
        number = re.fullmatch(r"(run_id|name)=(\d+_[\d_]+)", override)
        if number:  # Hydra drops the underscores
            raise InputError(
                f"{override} is parsed as a number: quote the name, as in "
                f"\"{number[1]}='{number[2]}'\""
            )
        if override.endswith("={}"):
            raise InputError(
                f"{override} has no effect: it adds nothing to the current choice. Choose by name, "
                "as in arms=[folded,random]"
            )
    unknown = [name for name in resolved if name not in (*fields, *REFERRED)]
    if unknown:
        raise InputError(f"there is no setting {unknown[0]!r}; see saematch --help")
    missing = [name for name in fields if name not in resolved]
    if missing:
        raise InputError(
            f"{missing[0]} is missing: choose at least one, as in arms=[folded,random]"
            if missing[0] == "arms"
            else f"{missing[0]} is missing: keep its default, or choose another"
        )
    if isinstance(resolved["second_judge"], str):
        choice = resolved["second_judge"]
        raise InputError(f"second_judge={choice}: write judge@second_judge={choice}")
    plain = {name: resolved[name] for name in fields if not isinstance(resolved[name], Mapping)}
    check_fields(experiment, plain)


def check_choices(settings: Sequence[str]) -> None:
    """Refuse a number as the name of a preset, and a preset that is named twice.

    Hydra raises a traceback for the number, and ignores the second name.
    """
    for choice in OverridesParser.create().parse_overrides(list(settings)):
        group = choice.key_or_group
        if choice.is_sweep_override() or not (PRESETS / group).is_dir():
            continue
        value = choice.value()
        names = value if isinstance(value, list) else [value]
        if not isinstance(value, dict) and not all(isinstance(name, str) for name in names):
            presets = ", ".join(sorted(path.stem for path in (PRESETS / group).glob("*.yaml")))
            raise InputError(f"{choice.input_line}: choose one of {presets}")
        repeated = [name for n, name in enumerate(names) if name in names[:n]]
        if repeated:
            raise InputError(f"{choice.input_line} names {repeated[0]!r} twice: name it once")


def quoted(value: str) -> str:
    """Return a value in quotes. Hydra parses the result back to the same value."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def spread(setting: str) -> tuple[str, list[str]]:
    """Return the setting's key and the settings that ``key=a,b`` or ``key=range(0,3)`` means."""
    if "=" not in setting or "glob(" in setting:
        raise InputError(
            f"{setting!r} is not a setting: write key=value, or key=a,b to sweep over it"
        )
    (parsed,) = OverridesParser.create().parse_overrides([setting])
    key = parsed.get_key_element()
    if not parsed.is_sweep_override():
        return key, [setting]
    if not parsed.is_discrete_sweep():
        raise InputError(f"{setting}: list the values, as {key}=1,2,3")
    return key, [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def known_keys() -> list[str]:
    """Return the names of all settings and config groups."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("config"), resolve=False)
    keys, todo = [], [("", config)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{k!s}" if prefix else str(k), inner) for k, inner in value.items()]
        if prefix:
            keys.append(prefix)
    return [*keys, *(path.name for path in PRESETS.iterdir() if path.is_dir())]

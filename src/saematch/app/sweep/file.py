"""A W&B sweep file, as ``wandb sweep`` takes it, and the settings of each job that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from saematch.app.configuration import without_config_dir
from saematch.app.renaming import renamed
from saematch.core.errors import InputError
from saematch.core.files import SWEEPS, reading

METHODS = ("grid", "random", "bayes")
BEGINNING = ["${env}", "${interpreter}", "-m", "saematch"]
END = "${args_no_hyphens}"
COMMAND = " ".join([*BEGINNING, "+experiment=parts", END])
KEYS = ("name", "description", "project", "entity", "program", "method", "metric", "parameters",
        "command", "run_cap")  # fmt: skip
"""What a sweep file may say; W&B knows more, which only its server can do."""

Value = str | int | float | bool | list
Point = dict[str, Value]
"""One value of every parameter."""


class Metric(NamedTuple):
    """What a sweep is judged by."""

    name: str
    """One of a run's flat metrics."""
    goal: str
    """``minimize`` or ``maximize``."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that was read and found in order."""

    study: str
    """Name of the file, without its ending."""
    method: str
    metric: Metric
    parameters: Mapping[str, Mapping[str, Any]]
    """By setting; W&B's own notation of values and distributions."""
    settings: tuple[str, ...]
    """Settings of every job, from the file's command."""
    config_dir: Path | None
    """Folder of the user's presets, from the file's command; None without one."""
    run_cap: int | None
    """How many jobs there are at most; a grid has an end of its own."""

    def job_settings(self, point: Point) -> list[str]:
        """Return the settings of a job as W&B's agent writes them behind the command."""
        return [*self.settings, *(f"{name}={value}" for name, value in point.items())]

    def grid(self) -> list[Point]:
        """Return every point of the grid, in W&B's order: the last parameter changes first.

        Parameters go by the alphabet. ``InputError`` if one of them has no list of values.
        """
        names = sorted(self.parameters)
        values = [_listed(name, self.parameters[name]) for name in names]
        return [dict(zip(names, point, strict=True)) for point in product(*values)]


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file, or one of ours by its name; ``InputError`` says what is wrong with it."""
    ours = SWEEPS / path.with_suffix(".yaml").name
    if not path.is_file() and path.parent.name in ("", "sweeps") and ours.is_file():
        path = ours
    if not path.is_file():
        raise InputError(f"there is no sweep file {path}; by name there are {studies()}")
    try:
        with reading(path):
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(told, dict):
        raise InputError(f"{path} is no W&B sweep: it has no 'method', 'metric' and 'parameters'")
    unknown = [key for key in told if key not in KEYS]
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]!r} is only for W&B's server; here there are {', '.join(KEYS)}"
        )
    missing = [key for key in ("method", "metric", "parameters", "command") if key not in told]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}")
    if told["method"] not in METHODS:
        raise InputError(f"{path}: method {told['method']!r} is none of {', '.join(METHODS)}")
    parameters = told["parameters"]
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: 'parameters' must name at least one setting and its values")
    for name, given in parameters.items():
        _check(path, name, given)
    config_dir, settings = _command(path, told["command"])
    named = [f"{name}={given.get('value', '...')}" for name, given in parameters.items()]
    listed = [f"{name}={v}" for name, given in parameters.items() for v in given.get("values", ())]
    for sentence in filter(None, map(renamed, [*settings, *listed, *named])):
        raise InputError(f"{path}: {sentence}")
    return SweepFile(
        study=path.stem,
        method=told["method"],
        metric=_metric(path, told["metric"]),
        parameters=parameters,
        settings=settings,
        config_dir=config_dir,
        run_cap=_run_cap(path, told),
    )


def studies() -> str:
    """Return the names of our own sweeps."""
    return ", ".join(sorted(path.stem for path in SWEEPS.glob("*.yaml")))


def _metric(path: Path, told: Any) -> Metric:
    if not isinstance(told, dict) or set(told) != set(Metric._fields):
        raise InputError(f"{path}: 'metric' needs a 'name' and a 'goal'")
    if not isinstance(told["name"], str):
        raise InputError(f"{path}: the metric's name {told['name']!r} is no text")
    if told["goal"] not in ("minimize", "maximize"):
        raise InputError(f"{path}: goal {told['goal']!r} is neither minimize nor maximize")
    return Metric(**told)


def _run_cap(path: Path, told: Mapping[str, Any]) -> int | None:
    if "run_cap" not in told:
        return None
    if type(told["run_cap"]) is not int or told["run_cap"] < 1:
        raise InputError(f"{path}: run_cap {told['run_cap']!r} is no number of jobs")
    return told["run_cap"]


def _command(path: Path, command: Any) -> tuple[Path | None, tuple[str, ...]]:
    """Return the folder of presets and the settings that the command holds."""
    words = command if isinstance(command, list) else []
    middle = words[len(BEGINNING) : -1]
    if words != [*BEGINNING, *middle, END] or any("${" in str(word) for word in middle):
        raise InputError(f"{path}: the command must have this form, with any settings: {COMMAND}")
    try:
        config_dir, settings = without_config_dir(list(map(str, middle)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config_dir, tuple(settings)


def _check(path: Path, name: str, given: Any) -> None:
    """Refuse what cannot be written as ``name=value`` on a command line."""
    if not isinstance(given, dict):
        raise InputError(f"{path}: parameter {name!r} needs 'value', 'values' or a distribution")
    values = given["values"] if "values" in given else [given.get("value", 0)]
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: the 'values' of {name!r} are no list of some: {values!r}")
    told = [repr(value) for value in values]
    if len(set(told)) < len(told):
        raise InputError(f"{path}: {name!r} has a value twice: {', '.join(told)}")
    for value in values:
        leaves = value if isinstance(value, list) else [value]
        if any(isinstance(leaf, dict | list) for leaf in leaves):
            raise InputError(f"{path}: {name!r} has {value}: take scalars, names or flat lists")
        if any(leaf is None for leaf in leaves):
            raise InputError(f"{path}: {name!r} has null, which W&B's agent writes as the word "
                             "None: write the string 'null'")  # fmt: skip
        if any(isinstance(leaf, str) and "=" in leaf for leaf in leaves):
            raise InputError(f"{path}: {name!r} has {value!r}: a value holds no equals sign")


def _listed(name: str, given: Mapping[str, Any]) -> list[Value]:
    if "values" in given:
        return list(given["values"])
    if "value" in given:
        return [given["value"]]
    raise InputError(f"parameter {name!r} has no 'values', which a grid needs; or take method: "
                     "random")  # fmt: skip

"""W&B sweep files, as ``wandb sweep`` reads them, and the settings of their jobs."""

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
"""Keys that a sweep file may have. Only W&B's server supports the other keys of W&B."""

Value = str | int | float | bool | list
Point = dict[str, Value]
"""One value of every parameter."""


class Metric(NamedTuple):
    """The metric that a sweep optimises."""

    name: str
    """Name of one of a run's flat metrics."""
    goal: str
    """``minimize`` or ``maximize``."""


@dataclass(frozen=True)
class SweepFile:
    """A valid sweep file."""

    study: str
    """Name of the file without its extension."""
    method: str
    metric: Metric
    parameters: Mapping[str, Mapping[str, Any]]
    """By setting: values or a distribution, in W&B's notation."""
    settings: tuple[str, ...]
    """Settings of every job, from the file's command."""
    config_dir: Path | None
    """Folder of the user's presets, from the file's command; None without one."""
    run_cap: int | None
    """Largest number of jobs; None without a limit, as for most grids."""

    def job_settings(self, point: Point) -> list[str]:
        """Return a job's settings as W&B's agent appends them to the command."""
        return [*self.settings, *(f"{name}={value}" for name, value in point.items())]

    def grid(self) -> list[Point]:
        """Return all points of the grid in W&B's order.

        Parameters are sorted by name, and the last one changes fastest. ``InputError`` if a
        parameter has no list of values.
        """
        names = sorted(self.parameters)
        values = [_listed(name, self.parameters[name]) for name in names]
        return [dict(zip(names, point, strict=True)) for point in product(*values)]


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file, or one of saematch's by its name. ``InputError`` if it is not valid."""
    ours = SWEEPS / path.with_suffix(".yaml").name
    if not path.is_file() and path.parent.name in ("", "sweeps") and ours.is_file():
        path = ours
    if not path.is_file():
        raise InputError(f"there is no sweep file {path}; saematch has {studies()}")
    try:
        with reading(path):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a W&B sweep: it needs 'method', 'metric' and 'parameters'")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]!r} needs W&B's server; the keys allowed here are "
            f"{', '.join(KEYS)}"
        )
    missing = [key for key in ("method", "metric", "parameters", "command") if key not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}")
    if content["method"] not in METHODS:
        raise InputError(f"{path}: method {content['method']!r} is not one of {', '.join(METHODS)}")
    parameters = content["parameters"]
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: 'parameters' must name at least one setting and its values")
    for name, parameter in parameters.items():
        _check(path, name, parameter)
    config_dir, settings = _command(path, content["command"])
    named = [f"{name}={p.get('value', '...')}" for name, p in parameters.items()]
    listed = [f"{name}={v}" for name, p in parameters.items() for v in p.get("values", ())]
    for sentence in filter(None, map(renamed, [*settings, *listed, *named])):
        raise InputError(f"{path}: {sentence}")
    return SweepFile(
        study=path.stem,
        method=content["method"],
        metric=_metric(path, content["metric"]),
        parameters=parameters,
        settings=settings,
        config_dir=config_dir,
        run_cap=_run_cap(path, content),
    )


def studies() -> str:
    """Return the names of saematch's sweeps."""
    return ", ".join(sorted(path.stem for path in SWEEPS.glob("*.yaml")))


def _metric(path: Path, metric: Any) -> Metric:
    if not isinstance(metric, dict) or set(metric) != set(Metric._fields):
        raise InputError(f"{path}: 'metric' needs a 'name' and a 'goal'")
    if not isinstance(metric["name"], str):
        raise InputError(f"{path}: the metric's name {metric['name']!r} is not text")
    if metric["goal"] not in ("minimize", "maximize"):
        raise InputError(f"{path}: goal {metric['goal']!r} is neither minimize nor maximize")
    return Metric(**metric)


def _run_cap(path: Path, content: Mapping[str, Any]) -> int | None:
    if "run_cap" not in content:
        return None
    if type(content["run_cap"]) is not int or content["run_cap"] < 1:
        raise InputError(f"{path}: run_cap {content['run_cap']!r} is not a number of jobs")
    return content["run_cap"]


def _command(path: Path, command: Any) -> tuple[Path | None, tuple[str, ...]]:
    """Return the folder of presets and the settings in the command."""
    words = command if isinstance(command, list) else []
    middle = words[len(BEGINNING) : -1]
    if words != [*BEGINNING, *middle, END] or any("${" in str(word) for word in middle):
        raise InputError(f"{path}: the command must have this form, with any settings: {COMMAND}")
    try:
        config_dir, settings = without_config_dir(list(map(str, middle)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config_dir, tuple(settings)


def _check(path: Path, name: str, parameter: Any) -> None:
    """Refuse values that cannot be written as ``name=value`` on a command line."""
    if not isinstance(parameter, dict):
        raise InputError(f"{path}: parameter {name!r} needs 'value', 'values' or a distribution")
    values = parameter["values"] if "values" in parameter else [parameter.get("value", 0)]
    if not isinstance(values, list) or not values:
        raise InputError(
            f"{path}: the 'values' of {name!r} must be a list of at least one value: {values!r}"
        )
    texts = [repr(value) for value in values]
    if len(set(texts)) < len(texts):
        raise InputError(f"{path}: {name!r} has a value twice: {', '.join(texts)}")
    for value in values:
        leaves = value if isinstance(value, list) else [value]
        if any(isinstance(leaf, dict | list) for leaf in leaves):
            raise InputError(f"{path}: {name!r} has {value}: use scalars, names or flat lists")
        if any(leaf is None for leaf in leaves):
            raise InputError(f"{path}: {name!r} has null, which W&B's agent writes as the word "
                             "None: write the string 'null'")  # fmt: skip
        if any(isinstance(leaf, str) and "=" in leaf for leaf in leaves):
            raise InputError(
                f"{path}: {name!r} has {value!r}: a value cannot contain an equals sign"
            )


def _listed(name: str, parameter: Mapping[str, Any]) -> list[Value]:
    if "values" in parameter:
        return list(parameter["values"])
    if "value" in parameter:
        return [parameter["value"]]
    raise InputError(f"parameter {name!r} has no 'values', which a grid needs; add them, or use "
                     "method: random")  # fmt: skip

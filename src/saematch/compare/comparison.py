"""Many runs as one table, and the settings in which they differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from saematch.compare.by_layer import ByLayer, by_layer
from saematch.compare.checks import compared, keep_comparable
from saematch.compare.runs import MEANS, Objective, RunFolder, Value, find_runs
from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.safe_text import visible
from saematch.core.tables import Row, frame_of, rows_of
from saematch.report.frames import values_of
from saematch.runs.resuming import settings_of

SUITES = "suites"
"""Parameter name that selects the SAE suite in a comparison."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs, both those that are compared and those that are excluded."""

    runs: tuple[RunFolder, ...]
    parameters: tuple[str, ...]
    """Settings that were swept."""
    means: pd.DataFrame
    """The tidy table: a row for each compared run and row of its table ``means``."""
    objectives: tuple[Objective, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks on the runs that are compared."""
    by_layer: ByLayer = field(default_factory=ByLayer)
    """Metrics and agreement of matches by layer."""
    out: Path = Path()
    figures: Mapping[str, Path] = field(default_factory=dict)
    undrawn: str = ""
    """Reason why there are no figures; empty if there are figures."""

    @property
    def compared(self) -> list[RunFolder]:
        """The runs in the table and the figures."""
        return compared(self.runs)

    @property
    def left_out(self) -> list[RunFolder]:
        """Excluded runs, each with its reason."""
        return [run for run in self.runs if run.reason]

    @property
    def columns(self) -> dict[str, Column]:
        """Definitions of the metrics, from the results of the compared runs.

        If runs define a metric differently, as scores of judges, the definition is that of this
        package.
        """
        columns: dict[str, Column] = {}
        differing = set()
        for run in self.compared:
            assert run.results is not None
            for name, column in run.results.tables.columns.items():
                if columns.setdefault(name, column) != column:
                    differing.add(name)
        if differing:
            from saematch.report.metrics import own_columns  # imports torch

            columns |= {name: c for name, c in own_columns().items() if name in differing}
        return columns

    def column(self, metric: str) -> Column:
        """Return the definition of a metric; a metric without a definition is its own label."""
        return self.columns.get(metric, Column(metric, metric))

    def best(self, objective: Objective) -> tuple[RunFolder, float] | None:
        """Return the best run and its value; None if no run has the metric."""
        reached = {run: _reached(run, objective) for run in self.compared}
        values = {run: value for run, value in reached.items() if value is not None}
        if not values:
            return None
        choose = max if objective.goal == "maximize" else min
        run = choose(values, key=lambda run: values[run])
        return run, values[run]

    def run_rows(self) -> list[Row]:
        """Return the table of runs: folder, settings, and why a run is excluded."""
        rows = []
        for run in self.runs:
            row: Row = {"run": run.name, "folder": visible(str(run.folder)), "state": run.state}
            row |= {column_name(name): run.parameters[name] for name in self.parameters}
            row |= {objective.metric: _reached(run, objective) for objective in self.objectives}
            provenance = {} if run.results is None else run.results.provenance
            row |= {name: provenance.get(name) for name in ("seconds", "git_commit", "code")}
            row |= {"compared": not run.reason, "reason": run.reason}
            rows.append(row)
        return rows


def collect(
    folders: Sequence[Path], where: Sequence[str] = (), code: str | None = None
) -> Comparison:
    """Compare the runs in or below the folders whose settings match ``where``.

    ``code`` is the beginning of the hash of the code whose runs are compared. Raises
    ``InputError`` if no run can be compared, if a setting in ``where`` was not swept, and if no
    run has this code.
    """
    folder_runs = find_runs(folders)
    parameters, runs = _with_parameters(folder_runs.runs)
    choices = _choices(where, parameters, runs)
    suites = choices.pop(SUITES, None)
    chosen = [run for run in runs if _has(run, choices)]
    if not chosen:
        raise InputError(f"no run has all of {', '.join(where)}")
    runs = keep_comparable(chosen, code)
    means = frame_of([row for run in compared(runs) for row in _tidy(run, parameters)])
    existing = [str(name) for name in values_of(means, SUITES)]
    if suites is not None and len(means):
        means = means[means[SUITES].isin(suites)]
    if means.empty:
        raise InputError(_no_runs_reason(runs, where, existing))
    notes = [*folder_runs.notes, *_notes(runs, parameters)]
    n, n_chosen = len(folder_runs.runs), len(chosen)
    if n_chosen < n:
        notes.insert(0, f"{n_chosen} of {n} runs are of {', '.join(where)}")
    objectives, layers = folder_runs.objectives, by_layer(compared(runs))
    remarks = (*notes, *layers.notes)
    return Comparison(tuple(runs), tuple(parameters), means, objectives, remarks, layers)


def layer_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the tables ``by_layer`` and ``agreement``, those that have rows."""
    layers = comparison.by_layer
    tables = {"by_layer": layers.metrics, "agreement": layers.agreement}
    return {name: frame for name, frame in tables.items() if len(frame)}


def column_name(parameter: str) -> str:
    """Return the name of a parameter's column, which differs from the columns of every run."""
    return f"swept_{parameter}" if parameter in ("run", *MEANS) else parameter


def shown(value: Value) -> str:
    """Return a parameter's value as text for tables and figures."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.12g}"


def described(run: RunFolder, parameters: Sequence[str]) -> str:
    """Return the swept settings of a run as overrides, separated by commas."""
    return ", ".join(f"{name}={shown(run.parameters[name])}" for name in parameters)


def is_parameter(key: str) -> bool:
    """Whether a setting may change a run's numbers, unlike its name, folder or device."""
    if key in ("run_id", "name") or key.startswith(("trainer", "hydra")):
        return False
    return bool(settings_of({key: 0}))


_OVERRIDE = re.compile(r"(?:\+\+|\+|~)?([^=]+)(?:=(.*))?", re.DOTALL)


def _overrides(run: RunFolder) -> dict[str, str | None]:
    """Return the overrides that may change the numbers; a removed setting is None."""
    parts = (_OVERRIDE.fullmatch(setting) for setting in run.settings)
    return {part[1]: part[2] for part in parts if part and is_parameter(part[1])}


def _with_parameters(runs: Sequence[RunFolder]) -> tuple[list[str], list[RunFolder]]:
    """Return the swept parameters, and the runs with their values."""
    overrides = [_overrides(run) for run in runs]
    keys = list(dict.fromkeys(key for of_run in overrides for key in of_run))
    settings = [_values(run, of_run, keys) for run, of_run in zip(runs, overrides, strict=True)]
    swept = [key for key in keys if len({s[key] for s in settings if key in s}) > 1]
    texts = {key for key in swept if any(isinstance(s.get(key), str) for s in settings)}
    with_values = []
    for run, of_run in zip(runs, settings, strict=True):
        values: dict[str, Value] = {}
        for key in swept:
            value = of_run.get(key)  # a run that never started has only its overrides
            values[key] = shown(value) if key in texts and value is not None else value
        with_values.append(replace(run, parameters=values))
    return swept, with_values


def _values(
    run: RunFolder, overrides: Mapping[str, str | None], keys: list[str]
) -> dict[str, Value]:
    """Return a run's settings: those that its results have, else its overrides."""
    values: dict[str, Value] = {}
    config = {} if run.results is None else run.results.config
    choices, flat = config.get("choices", {}), settings_of(config)
    for key in keys:
        if key in choices or key in flat:
            values[key] = _value(key, choices[key] if key in choices else flat[key])
        elif key in overrides:
            text = overrides[key]
            values[key] = None if text is None else _value(key, _parsed(text))
        elif run.results is not None:
            values[key] = None
    return values


def _value(key: str, value: object) -> Value:
    """Return a number unchanged, the member of a list of one, and a label for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _value(key, value[0])
    if isinstance(value, list):
        in_order = key.rpartition(".")[2] in ("layers", "pair")
        return ("→" if in_order else ", ").join(shown(_value("", part)) for part in value)
    return str(value)


def _parsed(text: str) -> object:
    """Return the value of a setting from its text."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_parsed(part) for part in text[1:-1].split(",") if part.strip()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    words = {"true": True, "false": False, "null": None}
    return words.get(text.lower(), text.strip("'\""))


def _choices(
    where: Sequence[str], parameters: Sequence[str], runs: Sequence[RunFolder]
) -> dict[str, set[str]]:
    """Return the chosen values of each parameter; raises ``InputError`` for other values."""
    choices: dict[str, set[str]] = defaultdict(set)
    for choice in where:
        key, sign, text = choice.partition("=")
        if not sign or key not in (*parameters, SUITES):
            keys = ", ".join((*parameters, SUITES))
            raise InputError(f"--where {choice}: give KEY=VALUE, KEY one of {keys}")
        value = shown(_value(key, _parsed(text)))
        existing = {shown(run.parameters[key]) for run in runs} if key != SUITES else {value}
        if value not in existing:
            values = ", ".join(sorted(existing))
            raise InputError(f"--where {choice}: no run has this; the values are {values}")
        choices[key].add(value)
    return dict(choices)


def _has(run: RunFolder, choices: Mapping[str, set[str]]) -> bool:
    """Whether a run has the chosen settings, or has not started and may have them."""
    planned = run.results is None
    return all(
        shown(run.parameters[key]) in values or (planned and run.parameters[key] is None)
        for key, values in choices.items()
    )


def _tidy(run: RunFolder, parameters: Sequence[str]) -> list[Row]:
    """Return the means of a run, each with the run's name and parameters."""
    assert run.results is not None
    settings = {column_name(name): run.parameters[name] for name in parameters}
    means = rows_of(run.results.tables["means"][list(MEANS)])
    return [{"run": run.name, **settings, **row} for row in means]


def _reached(run: RunFolder, objective: Objective) -> float | None:
    metrics = {} if run.results is None else run.results.metrics
    return metrics.get(objective.metric)  # a run that failed has none


def _no_runs_reason(runs: Sequence[RunFolder], where: Sequence[str], suites: Sequence[str]) -> str:
    """Return why there is nothing to compare."""
    if suites:
        return f"no run has SAEs of --where {', '.join(where)}; the suites are {', '.join(suites)}"
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        counts[run.state] += 1
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    first = runs[0]
    return f"no run can be compared: {states}; {first.folder}: {first.reason}"


def _notes(runs: Sequence[RunFolder], parameters: Sequence[str]) -> list[str]:
    notes = []
    silent = [run for run in compared(runs) if not _records_settings(run)]
    if silent:
        notes.append(
            f"{len(silent)} of the compared runs do not record their overrides, since older code "
            "made them; they count as runs without overrides"
        )
    by_settings: dict[tuple, list[RunFolder]] = defaultdict(list)
    for run in compared(runs):
        by_settings[tuple(run.parameters[name] for name in parameters)].append(run)
    return notes + [_equality_note(alike) for alike in by_settings.values() if len(alike) > 1]


def _records_settings(run: RunFolder) -> bool:
    assert run.results is not None
    return bool(run.settings) or "overrides" in run.results.config


def _equality_note(runs: Sequence[RunFolder]) -> str:
    """Return a note on runs with equal swept settings."""
    names = ", ".join(run.name for run in runs)
    results = [run.results for run in runs if run.results is not None]
    first = rows_of(results[0].tables["means"])
    identical = all(rows_of(of_run.tables["means"]) == first for of_run in results[1:])
    configs = [settings_of(of_run.config) for of_run in results]
    keys = dict.fromkeys(key for config in configs for key in config if is_parameter(key))
    missing = object()
    differing = [k for k in keys if len({str(c.get(k, missing)) for c in configs}) > 1]
    numbers = "identical numbers" if identical else "different numbers"
    if not differing:
        return f"{names}: the same settings, {numbers}; all are kept"
    several = ", ".join(differing[:4])
    return f"{names}: no swept setting differs, only {several}; {numbers}; all are kept"

"""Many runs as one table, and the settings in which they differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from saematch.compare.checks import compared, keep_comparable
from saematch.compare.runs import MEANS, Objective, RunFolder, Value, find_runs
from saematch.core.errors import InputError
from saematch.core.safe_text import visible
from saematch.core.tables import Row
from saematch.run.resuming import settings_of

SUITES = "suites"
"""Parameter name that selects the SAE suite in a comparison."""


@dataclass(frozen=True)
class Comparison:
    """Runs, those that are compared and those that are left out."""

    runs: tuple[RunFolder, ...]
    parameters: tuple[str, ...]
    """Settings that were swept."""
    rows: tuple[Row, ...]
    """The tidy table: a row for each run and row of its ``means``."""
    objectives: tuple[Objective, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader has to know of these runs."""
    out: Path = Path()
    figures: Mapping[str, Path] = field(default_factory=dict)
    undrawn: str = ""
    """Why there are no figures; empty if there are."""

    @property
    def compared(self) -> list[RunFolder]:
        """The runs in the table and the figures."""
        return compared(self.runs)

    @property
    def left_out(self) -> list[RunFolder]:
        """The runs that are not, each with its reason."""
        return [run for run in self.runs if run.reason]

    def best(self, objective: Objective) -> tuple[RunFolder, float] | None:
        """Return the best run and its value; None if no run has the metric."""
        found = {run: _reached(run, objective) for run in self.compared}
        known = {run: value for run, value in found.items() if value is not None}
        if not known:
            return None
        choose = max if objective.goal == "maximize" else min
        run = choose(known, key=lambda run: known[run])
        return run, known[run]

    def run_rows(self) -> list[Row]:
        """Return the table of runs: where each is, its settings, and why it is left out."""
        rows = []
        for run in self.runs:
            row: Row = {"run": run.name, "folder": visible(str(run.folder)), "state": run.state}
            row |= {column(name): run.parameters[name] for name in self.parameters}
            row |= {objective.metric: _reached(run, objective) for objective in self.objectives}
            about = {} if run.results is None else run.results.provenance
            row |= {"seconds": about.get("seconds"), "git_commit": about.get("git_commit")}
            row |= {"code": about.get("code"), "compared": not run.reason, "reason": run.reason}
            rows.append(row)
        return rows


def collect(
    folders: Sequence[Path], where: Sequence[str] = (), code: str | None = None
) -> Comparison:
    """Compare the runs in or below the folders, those of the settings ``where``.

    Raises ``InputError`` if nothing can be compared, for a setting that was not swept, and for code
    that made none of the runs.
    """
    found = find_runs(folders)
    parameters, runs = _with_parameters(found.runs)
    wanted = _wanted(where, parameters, runs)
    sets = wanted.pop(SUITES, None)
    chosen = [run for run in runs if _has(run, wanted)]
    if not chosen:
        raise InputError(f"no run is of all of {', '.join(where)}")
    runs = keep_comparable(chosen, code)
    rows = [row for run in compared(runs) for row in _tidy(run, parameters)]
    known = list(dict.fromkeys(str(row[SUITES]) for row in rows))
    if sets is not None:
        rows = [row for row in rows if row[SUITES] in sets]
    if not rows:
        raise InputError(_nothing(runs, where, known))
    notes = [*found.notes, *_notes(runs, parameters)]
    if len(chosen) < len(found.runs):
        notes.insert(0, f"{len(chosen)} of {len(found.runs)} runs are of {', '.join(where)}")
    about = (tuple(runs), tuple(parameters), tuple(rows), found.objectives)
    return Comparison(*about, tuple(notes))


def column(parameter: str) -> str:
    """Return the name of a parameter's column; ``dataset`` is also a column of every run."""
    return f"swept_{parameter}" if parameter in ("run", *MEANS) else parameter


def shown(value: Value) -> str:
    """Return a parameter's value as it is written in tables and figures."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.12g}"


def described(run: RunFolder, parameters: Sequence[str]) -> str:
    """Return the settings of a run, as they are given to it."""
    return ", ".join(f"{name}={shown(run.parameters[name])}" for name in parameters)


def is_parameter(key: str) -> bool:
    """Whether a setting may change what a run finds: not its name, its place or its device."""
    if key in ("run_id", "name") or key.startswith(("trainer", "hydra")):
        return False
    return bool(settings_of({key: 0}))


_OVERRIDE = re.compile(r"(?:\+\+|\+|~)?([^=]+)(?:=(.*))?", re.DOTALL)


def _overrides(run: RunFolder) -> dict[str, str | None]:
    """Return the given settings that may matter; a removed one is None."""
    parts = (_OVERRIDE.fullmatch(setting) for setting in run.settings)
    return {part[1]: part[2] for part in parts if part and is_parameter(part[1])}


def _with_parameters(runs: Sequence[RunFolder]) -> tuple[list[str], list[RunFolder]]:
    """Return the swept parameters, and the runs with their values."""
    given = [_overrides(run) for run in runs]
    keys = list(dict.fromkeys(key for of_run in given for key in of_run))
    known = [_values(run, own, keys) for run, own in zip(runs, given, strict=True)]
    swept = [key for key in keys if len({of[key] for of in known if key in of}) > 1]
    labelled = {key for key in swept if any(isinstance(of.get(key), str) for of in known)}
    done = []
    for run, of_run in zip(runs, known, strict=True):
        values: dict[str, Value] = {}
        for key in swept:
            value = of_run.get(key)  # of a run that never began only its plan is known
            values[key] = shown(value) if key in labelled and value is not None else value
        done.append(replace(run, parameters=values))
    return swept, done


def _values(run: RunFolder, given: Mapping[str, str | None], keys: list[str]) -> dict[str, Value]:
    """Return what is known of a run's settings: those given, else what was chosen or resolved."""
    values: dict[str, Value] = {}
    config = {} if run.results is None else run.results.config
    choices, flat = config.get("choices", {}), settings_of(config)
    for key in keys:
        if key in choices or key in flat:
            values[key] = _value(key, choices[key] if key in choices else flat[key])
        elif key in given:
            text = given[key]
            values[key] = None if text is None else _value(key, _parsed(text))
        elif run.results is not None:
            values[key] = None
    return values


def _value(key: str, value: object) -> Value:
    """Return a number as it is, a list of one as that one, and a label of anything else."""
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
    """Return the value that a setting's text means."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_parsed(part) for part in text[1:-1].split(",") if part.strip()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    words = {"true": True, "false": False, "null": None}
    return words.get(text.lower(), text.strip("'\""))


def _wanted(
    where: Sequence[str], parameters: Sequence[str], runs: Sequence[RunFolder]
) -> dict[str, set[str]]:
    """Return the values that are wanted of each parameter."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for choice in where:
        key, sign, text = choice.partition("=")
        if not sign or key not in (*parameters, SUITES):
            known = ", ".join((*parameters, SUITES))
            raise InputError(f"--where {choice}: give KEY=VALUE, KEY one of {known}")
        value = shown(_value(key, _parsed(text)))
        there = {shown(run.parameters[key]) for run in runs} if key != SUITES else {value}
        if value not in there:
            values = ", ".join(sorted(there))
            raise InputError(f"--where {choice}: no run has this; the values are {values}")
        wanted[key].add(value)
    return dict(wanted)


def _has(run: RunFolder, wanted: Mapping[str, set[str]]) -> bool:
    """Whether a run is of the wanted settings, as far as anybody knows."""
    unknown = run.results is None
    return all(
        shown(run.parameters[key]) in values or (unknown and run.parameters[key] is None)
        for key, values in wanted.items()
    )


def _tidy(run: RunFolder, parameters: Sequence[str]) -> list[Row]:
    assert run.results is not None
    about: Row = {"run": run.name} | {column(name): run.parameters[name] for name in parameters}
    return [
        about | {name: row[name] for name in MEANS}
        for row in run.results.tables.rows("means")
    ]  # fmt: skip


def _reached(run: RunFolder, objective: Objective) -> float | None:
    metrics = {} if run.results is None else run.results.metrics
    return metrics.get(objective.metric)  # a run that failed has none


def _nothing(runs: Sequence[RunFolder], where: Sequence[str], sets: Sequence[str]) -> str:
    if sets:
        return f"no run has SAEs of --where {', '.join(where)}; their sets are {', '.join(sets)}"
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        counts[run.state] += 1
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    first = runs[0]
    return f"no run can be compared: {states}; {first.folder}: {first.reason}"


def _notes(runs: Sequence[RunFolder], parameters: Sequence[str]) -> list[str]:
    notes = []
    silent = [run for run in compared(runs) if not _says_settings(run)]
    if silent:
        notes.append(
            f"{len(silent)} of the runs compared do not say which settings they were given, since "
            "older code made them; they count as given none"
        )
    alike: dict[tuple, list[RunFolder]] = defaultdict(list)
    for run in compared(runs):
        alike[tuple(run.parameters[name] for name in parameters)].append(run)
    for same in alike.values():
        if len(same) > 1:
            notes.append(_same(same))
    return notes


def _says_settings(run: RunFolder) -> bool:
    assert run.results is not None
    return bool(run.settings) or "overrides" in run.results.config


def _same(runs: Sequence[RunFolder]) -> str:
    names = ", ".join(run.name for run in runs)
    results = [run.results for run in runs if run.results is not None]
    identical = all(one.tables["means"].equals(results[0].tables["means"]) for one in results)
    configs = [settings_of(one.config) for one in results]
    keys = dict.fromkeys(key for config in configs for key in config if is_parameter(key))
    missing = object()
    differing = [k for k in keys if len({str(c.get(k, missing)) for c in configs}) > 1]
    numbers = "identical numbers" if identical else "different numbers"
    if not differing:
        return f"{names}: the same settings, {numbers}; all are kept"
    some = ", ".join(differing[:4])
    return f"{names}: told apart by no swept setting, only by {some}; {numbers}; all are kept"

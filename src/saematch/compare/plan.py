"""What the figures of a comparison show: which metrics, against which setting, in which panels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from saematch.compare.comparison import SUITES, Comparison, shown
from saematch.compare.runs import Value
from saematch.core.errors import InputError
from saematch.core.pairs import POOLED
from saematch.core.tables import Row
from saematch.report.style import unique, where

FAMILIES = (
    "matching_score",
    "explained_variance",
    "delta_loss",
    "recall",
    "judge_score",
    "mse_W_dec",
    "jaccard",
)
"""Drawn unless metrics are named, where runs have them."""
MAX_PANELS = 8


class Panel(NamedTuple):
    """What stands in one panel."""

    against: str | None
    """Parameter of the x axis; None if nothing was swept."""
    suites: str
    fixed: Mapping[str, Value]
    """The runs are those of these values."""
    scattered: bool = False
    """Runs differ in more than the x axis, so no lines join them."""


class Plan(NamedTuple):
    """What a figure shows where."""

    panels: tuple[Panel, ...]
    others: tuple[str, ...]
    """Parameters that tell panels apart."""


def metrics_of(comparison: Comparison, names: Sequence[str] = ()) -> list[str]:
    """Return the metrics to show, what a sweep was for first; ``InputError`` for unknown ones."""
    there = list(dict.fromkeys(str(row["metric"]) for row in comparison.rows))
    for name in names:
        if name not in there:
            raise InputError(f"--metric {name}: the runs have {', '.join(there)}")
    if names:
        return list(dict.fromkeys(names))
    first = [objective.metric.partition("/")[0] for objective in comparison.objectives]
    return [name for name in dict.fromkeys((*first, *FAMILIES)) if name in there]


def shown_rows(comparison: Comparison, metric: str) -> list[Row]:
    """Return the rows of a metric that figures show: those over all data sets.

    Of an arm with exactly one partial match it is that one, else the whole match.
    """
    by_place: dict[tuple, list[Row]] = defaultdict(list)
    for row in where(comparison.rows, metric=metric):
        if row["dataset"] in (POOLED, None) and row["value"] is not None:
            by_place[tuple(row[name] for name in ("run", SUITES, "arm", "strategy"))].append(row)
    return [row for rows in by_place.values() for row in _whole(rows)]


def _whole(rows: Sequence[Row]) -> list[Row]:
    partial = [row for row in rows if row["quantile"] is not None]
    return partial if len(partial) == 1 else where(rows, quantile=None)


def plan_panels(comparison: Comparison, against: str | None = None) -> Plan:
    """Choose what stands on the x axis, and what in panels.

    Of a search, whose numbers are in too many combinations, each has a panel of its own with all
    the runs. Raises ``InputError`` for a setting that was not swept.
    """
    values = {p: unique_values(comparison, p) for p in comparison.parameters}
    varying = [name for name in values if len(values[name]) > 1]
    if against is not None and against not in values:
        known = ", ".join(comparison.parameters) or "none"
        raise InputError(f"--against {against}: it was not swept; these settings were: {known}")
    if against is None and varying:
        numeric = [name for name in varying if is_numeric(values[name])]
        against = max(numeric or varying, key=lambda name: len(values[name]))
    others = tuple(name for name in varying if name != against)
    sets = [name for (name,) in unique(comparison.rows, SUITES)]
    there = {tuple(run.parameters[name] for name in others) for run in comparison.compared}
    combinations = [of for of in product(*(values[name] for name in others)) if of in there]
    if len(combinations) > MAX_PANELS and all(is_numeric(values[name]) for name in varying):
        each = tuple(Panel(name, of_set, {}, True) for name in varying for of_set in sets)
        return Plan(each, ())
    found = tuple(
        Panel(against, of_set, dict(zip(others, of, strict=True)))
        for of in combinations
        for of_set in sets
    )
    return Plan(found, others)


def too_many_panels(comparison: Comparison, plan: Plan) -> str:
    """Return why figures cannot be drawn, and what to try; empty if they can."""
    n = len(plan.panels)
    if n <= MAX_PANELS:
        return ""
    choices = {name: unique_values(comparison, name) for name in plan.others}
    sets = [name for (name,) in unique(comparison.rows, SUITES)]
    choices |= {SUITES: sets} if len(sets) > 1 else {}
    several = "; ".join(f"{name}={', '.join(map(shown, v))}" for name, v in choices.items())
    name, of_name = max(choices.items(), key=lambda choice: len(choice[1]))
    return (
        f"no figures: each would have {n} panels, more than {MAX_PANELS}, one for each combination "
        f"of {several}; choose some, as --where {name}={shown(of_name[0])}"
    )


def unique_values(comparison: Comparison, parameter: str) -> list[Value]:
    """Return the values of a parameter in the runs compared: numbers by size, others as met."""
    found = list(dict.fromkeys(run.parameters[parameter] for run in comparison.compared))
    return sorted(found, key=float) if is_numeric(found) else found  # type: ignore[arg-type]


def is_numeric(values: Sequence[Value]) -> bool:
    """Whether all values of a parameter are numbers."""
    return all(isinstance(value, int | float) for value in values)

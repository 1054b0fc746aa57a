"""Contents of a comparison's figures: metrics, the setting on the x axis, panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from saematch.compare.comparison import SUITES, Comparison, shown
from saematch.compare.runs import Value
from saematch.core.errors import InputError
from saematch.core.pairs import POOLED
from saematch.report.frames import values_of, where

FAMILIES = (
    "matching_score",
    "explained_variance",
    "delta_loss",
    "effect",
    "recall",
    "judge_score",
    "mse_W_dec",
    "jaccard",
)
"""Metrics that are drawn by default, if runs have them."""
MAX_PANELS = 8


class Panel(NamedTuple):
    """Contents of one panel."""

    against: str | None
    """Parameter of the x axis; None if nothing was swept."""
    suites: str
    fixed: Mapping[str, Value]
    """Parameter values that choose the runs."""
    scattered: bool = False
    """Whether runs differ in more than the x axis, so that no lines join them."""


class Plan(NamedTuple):
    """Panels of every figure."""

    panels: tuple[Panel, ...]
    others: tuple[str, ...]
    """Parameters in which panels differ."""


def metrics_of(comparison: Comparison, names: Sequence[str] = ()) -> list[str]:
    """Return the metrics to show, the objectives of sweeps first.

    Raises ``InputError`` for a name that no run has.
    """
    existing = [str(metric) for metric in values_of(comparison.means, "metric")]
    for name in names:
        if name not in existing:
            raise InputError(f"--metric {name}: the runs have {', '.join(existing)}")
    if names:
        return list(dict.fromkeys(names))
    first = [objective.metric.partition("/")[0] for objective in comparison.objectives]
    return [name for name in dict.fromkeys((*first, *FAMILIES)) if name in existing]


def shown_rows(comparison: Comparison, metric: str) -> pd.DataFrame:
    """Return the rows of a metric that figures show: those over all data sets.

    These are the rows of the whole match, or of the partial match if an arm has exactly one.
    """
    rows = where(comparison.means, metric=metric)
    rows = rows[rows["dataset"].isna() | (rows["dataset"] == POOLED)]
    rows = rows[rows["value"].notna()]
    partial = rows["quantile"].notna()
    keys = [rows[name] for name in ("run", SUITES, "arm", "strategy")]
    n_partial = partial.groupby(keys, dropna=False, sort=False).transform("sum")
    order = rows.groupby(["run", SUITES, "arm", "strategy"], dropna=False, sort=False).ngroup()
    chosen = rows[(n_partial == 1) == partial]
    return chosen.loc[order[chosen.index].sort_values(kind="stable").index]


def plan_panels(comparison: Comparison, against: str | None = None) -> Plan:
    """Choose the parameter of the x axis, and the panels.

    A search has too many combinations of numbers for panels; each of its parameters gets a panel
    with all runs. Raises ``InputError`` for a setting that was not swept.
    """
    values = {p: unique_values(comparison, p) for p in comparison.parameters}
    varying = [name for name in values if len(values[name]) > 1]
    if against is not None and against not in values:
        swept = ", ".join(comparison.parameters) or "none"
        raise InputError(f"--against {against}: it was not swept; these settings were: {swept}")
    if against is None and varying:
        numeric = [name for name in varying if is_numeric(values[name])]
        against = max(numeric or varying, key=lambda name: len(values[name]))
    others = tuple(name for name in varying if name != against)
    suites = values_of(comparison.means, SUITES)
    existing = {tuple(run.parameters[name] for name in others) for run in comparison.compared}
    combinations = [c for c in product(*(values[name] for name in others)) if c in existing]
    if len(combinations) > MAX_PANELS and all(is_numeric(values[name]) for name in varying):
        scattered = tuple(Panel(name, suite, {}, True) for name in varying for suite in suites)
        return Plan(scattered, ())
    panels = tuple(
        Panel(against, suite, dict(zip(others, combination, strict=True)))
        for combination in combinations
        for suite in suites
    )
    return Plan(panels, others)


def too_many_panels(comparison: Comparison, plan: Plan) -> str:
    """Return the reason why figures cannot be drawn, with advice; empty if they can be drawn."""
    n = len(plan.panels)
    if n <= MAX_PANELS:
        return ""
    choices = {name: unique_values(comparison, name) for name in plan.others}
    suites = values_of(comparison.means, SUITES)
    choices |= {SUITES: suites} if len(suites) > 1 else {}
    several = "; ".join(f"{name}={', '.join(map(shown, v))}" for name, v in choices.items())
    name, values = max(choices.items(), key=lambda choice: len(choice[1]))
    return (
        f"no figures: each would have {n} panels, more than {MAX_PANELS}, one for each combination "
        f"of {several}; choose some, as with --where {name}={shown(values[0])}"
    )


def unique_values(comparison: Comparison, parameter: str) -> list[Value]:
    """Return a parameter's values in the compared runs: numbers by size, others in run order."""
    values = list(dict.fromkeys(run.parameters[parameter] for run in comparison.compared))
    return sorted(values, key=float) if is_numeric(values) else values  # type: ignore[arg-type]


def is_numeric(values: Sequence[Value]) -> bool:
    """Whether all values of a parameter are numbers."""
    return all(isinstance(value, int | float) for value in values)

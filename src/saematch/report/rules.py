"""Findings of rules on a run's numbers, and building blocks of rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import pandas as pd

from saematch.core.pairs import OF_DEFAULT, PAIR_COLUMNS
from saematch.core.tables import Tables
from saematch.report.frames import has, numbers, where

MOST = 2 / 3
"""Default share of cases that must agree."""
SAME_CASE = (*PAIR_COLUMNS, "dataset")
"""Columns in which two rows must agree to be compared."""


@dataclass(frozen=True)
class Finding:
    """Result of a rule."""

    agrees: bool | None
    """Whether the rule agrees; None if the run lacks the numbers."""
    seen: str
    """The numbers that decided."""


class MissingNumbersError(ValueError):
    """A run lacks the numbers that a rule needs."""


def share(cases: Iterable[bool], unit: str, needed: float = MOST) -> Finding:
    """Agree if at least the share ``needed`` of the cases is true; ``unit`` names the cases.

    Raises ``MissingNumbersError`` without cases.
    """
    outcomes = [bool(case) for case in cases]
    if not outcomes:
        raise MissingNumbersError("no cases")
    seen = f"{sum(outcomes)} of {len(outcomes)} {unit}"
    return Finding(sum(outcomes) >= needed * len(outcomes), seen)


def both(*findings: Finding) -> Finding:
    """Agree if all findings agree."""
    agrees = all(finding.agrees for finding in findings)
    return Finding(agrees, "; ".join(finding.seen for finding in findings))


def rows(frame: pd.DataFrame, **selection: object) -> pd.DataFrame:
    """Return the rows that have the values; raises ``MissingNumbersError`` if none has."""
    chosen = where(frame, **selection)
    if chosen.empty:
        selected = ", ".join(f"{name} {value}" for name, value in selection.items())
        raise MissingNumbersError(f"no rows of {selected}")
    return chosen


def values(frame: pd.DataFrame, metric: str) -> list[float]:
    """Return a metric of all rows; raises ``MissingNumbersError`` if a row has no value."""
    if not has(frame, metric) or frame[metric].isna().any():
        raise MissingNumbersError(f"no {metric}")
    return numbers(frame, metric).tolist()


def of_arm(tables: Tables, arm: str, **selection: object) -> pd.DataFrame:
    """Return the rows of ``matches`` of an arm, by default in the default suite."""
    return rows(tables["matches"], **{"arm": arm, **OF_DEFAULT, **selection})


def of_strategy(tables: Tables, arm: str, strategy: str, **selection: object) -> pd.DataFrame:
    """Return the rows of ``strategies`` of an arm and strategy.

    By default, these are rows of whole matches in the default suite.
    """
    fixed = {"quantile": None, **OF_DEFAULT, **selection}
    return rows(tables["strategies"], **{"arm": arm, "strategy": strategy, **fixed})


def paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str,
    against: str | None = None,
    keys: Sequence[str] = SAME_CASE,
) -> list[tuple[float, float]]:
    """Return ``metric`` of each row of ``first`` with ``against`` of its row of ``second``.

    ``against`` is ``metric`` unless named. The two rows have the same values in the ``keys`` that
    the frames have. Raises ``MissingNumbersError`` if a row has no value or no partner.
    """
    on = [key for key in keys if key in first]
    sides = []
    for frame, name, side in ((first, metric, "first"), (second, against or metric, "second")):
        sides.append(frame[on].assign(**{side: values(frame, name)}))
    cases = sides[0].merge(sides[1], on=on, validate="one_to_one")
    if len(cases) < max(len(first), len(second)):
        raise MissingNumbersError(f"{metric}: not the same {', '.join(on)} on both sides")
    return list(zip(cases["first"].tolist(), cases["second"].tolist(), strict=True))


def rise(steps: Sequence[float], name: str) -> Finding:
    """Agree if three quarters of the steps from value to value go up."""
    return share((after > before for before, after in pairwise(steps)), f"steps up ({name})", 0.75)


def rises(steps: Sequence[float]) -> Finding:
    """Agree if the mean of the later half of the values is above that of the earlier half."""
    half = len(steps) // 2
    if not half:
        raise MissingNumbersError("one pair")
    early, late = fmean(steps[:half]), fmean(steps[-half:])
    return Finding(late > early, f"{early:.2f} in the first {half} pairs, {late:.2f} in the last")


def distance(frame: pd.DataFrame) -> pd.Series:
    """Return the number of layers from source to target, by row."""
    return frame["target_layer"] - frame["source_layer"]

"""Rows and cells of tables in the terminal that have a row for each pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT, PAIR_COLUMNS, Pair, pair_of
from saematch.report.frames import unique


def pairs_of(frame: pd.DataFrame) -> list[Pair]:
    """Return the pairs of a frame, in order of first appearance."""
    return [
        pair_of(dict(zip(PAIR_COLUMNS, key, strict=True))) for key in unique(frame, *PAIR_COLUMNS)
    ]


def pair_label(pair: Pair) -> str:
    """Return ``3→4`` or ``all``, and the suites unless both SAEs are of the default suite."""
    all_layers = pair.source.layer is None  # as in a judge's scores over all pairs
    layers = "all" if all_layers else f"{pair.source.layer}→{pair.target.layer}"
    return layers if pair.suites == DEFAULT else f"{layers} {pair.suites}"


def number(value: object) -> str:
    """Return a value with three decimals, or a dash if it is missing."""
    return "–" if _is_missing(value) else f"{float(str(value)):.3f}"


def half_width(value: object, low: object, high: object) -> float | None:
    """Return half the width of an interval, None without one.

    An interval ends at a limit of its metric, such as 1 for a share. Then it is the longer side.
    """
    if _is_missing(value) or _is_missing(low) or _is_missing(high):
        return None
    at, start, end = (float(str(number)) for number in (value, low, high))
    return max(end - at, at - start)


def percent(share: object) -> str:
    """Return a share as a whole percentage, or a dash if it is missing."""
    return "–" if _is_missing(share) else f"{float(str(share)):.0%}"


def texts_of(column: Column, values: Sequence[object]) -> list[str]:
    """Return the values of a metric in one notation, with a dash for each missing value.

    A metric with a least value of 0 and no greatest value, such as a squared error, may be tiny: it
    has three significant digits, as ``5.17`` and ``0.00743``, or ``7.49e-07`` if a value is below
    0.001 or above 100,000. Other metrics have three decimals.
    """
    if column.least != 0 or column.greatest != math.inf:
        return [number(value) for value in values]
    sizes = [abs(float(str(value))) for value in values if not _is_missing(value)]
    nonzero = [size for size in sizes if size]
    is_plain = not nonzero or (min(nonzero) >= PLAIN[0] and max(nonzero) <= PLAIN[1])
    return ["–" if _is_missing(v) else _significant(float(str(v)), is_plain) for v in values]


PLAIN = 1e-3, 1e5
"""Range of values that are written without an exponent."""


def _significant(value: float, is_plain: bool) -> str:
    if value == 0:
        return "0"
    if not is_plain:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or math.isnan(float(str(value)))

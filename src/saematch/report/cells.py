"""Rows and cells of tables in the terminal that have a row for each pair."""

from __future__ import annotations

import math

import pandas as pd

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
    return "–" if value is None or math.isnan(float(str(value))) else f"{float(str(value)):.3f}"

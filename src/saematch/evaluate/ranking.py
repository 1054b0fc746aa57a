"""Rank arms by paired differences of their means over pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from saematch.core.columns import Column
from saematch.core.pairs import Pair
from saematch.core.tables import Row
from saematch.evaluate.intervals import Interval, Replicates, Values

ROUNDING = 1e-12
"""Difference that rounding may leave between two equal means."""


class Ranked(NamedTuple):
    """The result of one arm."""

    arm: str
    mean: Interval
    rank: int | None
    """1 plus the number of arms that are better; None without intervals or without a value."""
    difference: Interval
    """The arm's mean minus that of ``against``, over the pairs of both."""
    against: str
    """The first arm that has the metric."""
    n_pairs: int

    def columns(self) -> Row:
        """Return the columns of the arm's row."""
        difference = {
            "difference": self.difference.value,
            "difference_low": self.difference.low,
            "difference_high": self.difference.high,
        }
        row: Row = {"arm": self.arm, **self.mean._asdict(), "rank": self.rank}
        return row | difference | {"against": self.against, "n_pairs": self.n_pairs}


def rank(
    column: Column,
    by_arm: Mapping[str, Mapping[Pair, Values]],
    replicates: Replicates | None,
) -> list[Ranked]:
    """Return the arms in their order, with the mean over pairs and the rank of each.

    An arm is better than another if the interval of their paired difference excludes 0, with the
    run's jackknife over texts (``Intervals``); the difference is over the pairs that both arms
    have. Arms that are better than equally many others need not differ: equal ranks are ties. A
    metric without replicates is exact, so every difference counts.
    """
    pairs = list(dict.fromkeys(pair for by_pair in by_arm.values() for pair in by_pair))
    values, has = _stacked(list(by_arm.values()), pairs)
    means = _mean_over(values, has)
    halves = _half_widths(means, column, replicates)
    sign = -1.0 if column.better == "lower" else 1.0
    n_better = torch.zeros(len(values), dtype=torch.int64)
    is_ranked = torch.ones(len(values), dtype=torch.bool)
    from_first: list[Interval] = []
    for number in range(len(values)):
        both = has & has[number]
        differences = _mean_over(values - values[number], both)
        widths = _half_widths(differences, column, replicates)
        n_better[number] = (sign * differences[:, 0] - widths > ROUNDING).sum()
        others = both.any(dim=1) & (torch.arange(len(values)) != number)
        is_ranked[number] = has[number].any() and not widths[others].isnan().any()
        if number == 0:
            from_first = [
                _interval(value[0].item(), half.item(), column.difference)
                for value, half in zip(differences, widths, strict=True)
            ]
    first = next(iter(by_arm))
    return [
        Ranked(
            arm, _interval(means[n, 0].item(), halves[n].item(), column),
            1 + int(n_better[n]) if is_ranked[n] else None, from_first[n], first, int(has[n].sum()),
        )
        for n, arm in enumerate(by_arm)
    ]  # fmt: skip


def _stacked(
    by_arm: list[Mapping[Pair, Values]], pairs: list[Pair]
) -> tuple[Float64[Tensor, "n_arms n_pairs n_values"], Bool[Tensor, "n_arms n_pairs"]]:
    """Return the values of all arms and pairs, 0 for missing ones, and a mask of present values."""
    n_values = max(len(values) for by_pair in by_arm for values in by_pair.values())
    stacked = torch.zeros(len(by_arm), len(pairs), n_values, dtype=torch.float64)
    has = torch.zeros(len(by_arm), len(pairs), dtype=torch.bool)
    for number, by_pair in enumerate(by_arm):
        for place, pair in enumerate(pairs):
            if pair in by_pair and not by_pair[pair][0].isnan():
                stacked[number, place], has[number, place] = by_pair[pair], True
    return stacked, has


def _mean_over(
    values: Float64[Tensor, "n_arms n_pairs n_values"], has: Bool[Tensor, "n_arms n_pairs"]
) -> Float64[Tensor, "n_arms n_values"]:
    """Return the mean over the pairs that an arm has; NaN if it has none."""
    sums = torch.where(has[:, :, None], values, 0.0).sum(dim=1)
    return sums / has.sum(dim=1, keepdim=True)


def _half_widths(
    values: Float64[Tensor, "n n_values"], column: Column, replicates: Replicates | None
) -> Float64[Tensor, " n"]:
    """Return half the width of each interval: 0 for an exact metric, NaN without an interval."""
    if not column.interval:
        return torch.zeros(len(values), dtype=torch.float64)
    assert replicates is not None, "a metric with intervals was measured on texts"
    return replicates.half_widths(values)


def _interval(value: float, half: float, column: Column) -> Interval:
    """Return an interval within the metric's range; exact values have no ends."""
    if math.isnan(value):
        return Interval(None)
    if math.isnan(half) or not column.interval:
        return Interval(value)
    low, high = max(value - half, column.least), min(value + half, column.greatest)
    return Interval(value, min(value, low), max(value, high))

"""Confidence intervals from a jackknife over texts.

Each metric of a run is a function of weights: how often each text counts. A replicate computes it
again without one text or, if there are many texts, without one group of texts. The spread of the
replicates gives the standard error, and Student's t gives the interval around the value (Tukey
1958; Efron and Stein 1981). The interval is for the expected value of the metric over text sets of
the same size.

A percentile bootstrap is unsuitable for means over the features that fired. Drawing with
replacement leaves out 37 % of the texts, and so most features that fire in one text only. The
resampled means are then means over other features, and may all lie to one side of the value. With
the set of features fixed the spread is too small, since a feature that fired in one text never
varies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from scipy.special import stdtrit
from torch import Tensor

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.specs import spec
from saematch.core.tables import Row

Weights = Float64[Tensor, "n_values n_texts"]
Values = Float64[Tensor, " n_values"]

FEW_TEXTS = 30
"""Number of texts below which intervals are often too narrow."""


class Interval(NamedTuple):
    """A value and the ends of its interval; None without a value or an interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@spec("intervals")
class Intervals:
    """Spec of the confidence intervals."""

    level: float = 0.95
    """Probability that an interval contains the expected value."""
    n_replicates: int = 1000
    """Largest number of replicates. With more texts than this, texts are left out in groups. 0
    computes no intervals."""

    def __post_init__(self) -> None:
        if not (self.n_replicates >= 0 and 0 < self.level < 1):
            raise InputError(
                f"intervals.n_replicates={self.n_replicates} and intervals.level={self.level}: "
                "n_replicates must be at least 0, and level between 0 and 1"
            )

    def replicates(self, sizes: Sequence[int]) -> Replicates:
        """Return the replicates of text sets; ``sizes`` has the number of texts of each."""
        groups = [self._n_groups(n, sum(sizes)) for n in sizes]
        of_set = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(groups).long())
        weights, start = [], 1
        for n, n_groups in zip(sizes, groups, strict=True):
            texts = torch.arange(n)
            part = torch.ones(1 + len(of_set), n, dtype=torch.float64)
            if n_groups:
                part[start + texts % n_groups, texts] = 0
            weights.append(part)
            start += n_groups
        return Replicates(tuple(weights), of_set, self.level)

    def _n_groups(self, n_texts: int, n_all: int) -> int:
        if not self.n_replicates:
            return 0
        if n_all <= self.n_replicates:
            return n_texts
        return min(n_texts, max(2, self.n_replicates * n_texts // n_all))


@dataclass(frozen=True)
class Replicates:
    """The replicates of a run. All metrics share them, so that differences are paired."""

    weights: tuple[Tensor, ...]
    """Weights by text set, ``[1 + n_replicates, n_texts]``: how often each text counts. The first
    row is all ones, so the first value of a metric is the metric itself."""
    of_set: Int64[Tensor, " n_replicates"]
    """Number of the text set from which each replicate leaves out texts."""
    level: float

    def pooled(self) -> Weights:
        """Return the weights of the texts of all sets."""
        return torch.cat(self.weights, dim=1) if self.weights else torch.zeros(1, 0).double()

    def row(self, column: Column, values: Values, whole: Values | None = None) -> Row:
        """Return the columns of a metric: its value, and the ends ``_low`` and ``_high``."""
        names = (column.name, f"{column.name}_low", f"{column.name}_high")
        return dict(zip(names, self.interval(column, values, whole), strict=True))

    def interval(self, column: Column, values: Values, whole: Values | None = None) -> Interval:
        """Return the value of a metric and its interval, which always contains the value.

        ``values`` has the metric, then its replicates. For a share, ``whole`` has its denominator;
        replicates that do not change the denominator contain no information about the share and
        are left out. There is no interval if each set has one text, or if a replicate is NaN.
        """
        value = values[0].item()
        if math.isnan(value):
            return Interval(None)
        half = self.half_widths(values[None], whole).item()
        if math.isnan(half):
            return Interval(value)
        low, high = max(value - half, column.least), min(value + half, column.greatest)
        return Interval(value, min(value, low), max(value, high))

    def half_widths(
        self, values: Float64[Tensor, "n n_values"], whole: Values | None = None
    ) -> Float64[Tensor, " n"]:
        """Return half the width of the interval of each row of values; NaN without an interval.

        ``whole`` is as in ``interval``, the same for all rows.
        """
        changes = torch.ones_like(self.of_set, dtype=torch.bool)
        if whole is not None:
            changes = whole[1:] != whole[0]
        sets, of_set = self.of_set[changes].unique(return_inverse=True)
        moved = values[:, 1:][:, changes]
        alone = torch.bincount(self.of_set, minlength=1).max() < 2
        if alone or moved.shape[1] < 2:
            return torch.full((len(values),), math.nan, dtype=torch.float64)
        n = torch.bincount(of_set, minlength=len(sets)).double()
        zeros = torch.zeros(len(values), len(sets), dtype=torch.float64)
        centres = zeros.index_add(1, of_set, moved) / n
        centres[:, n == 1] = values[:, :1]  # the only text of its set
        squares = zeros.index_add(1, of_set, (moved - centres[:, of_set]).square())
        freedom = (n - 1).clamp(min=1)
        variances = squares * torch.where(n == 1, 1, freedom / n)
        variance = variances.sum(dim=1)
        # Satterthwaite 1946; any number of degrees of freedom serves without variance
        of_sum = variance.square() / (variances.square() / freedom).sum(dim=1)
        quantiles = stdtrit(of_sum.where(variance != 0, 1.0).numpy(), (1 + self.level) / 2)
        return torch.from_numpy(quantiles) * variance.sqrt()

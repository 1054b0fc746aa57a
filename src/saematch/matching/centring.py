"""A common centre of two sets of vectors, and the expected value of a random match."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from saematch.matching import row_sums

VECTORS_AT_ONCE = 256
"""Number of vectors that are converted to float64 together."""
SMALL_MEAN = 0.25
"""Length of the mean of a side, as a share of the median vector's length, up to which its common
part costs float32 no precision that matters."""


def in_double(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None
) -> Iterator[Float64[Tensor, "k size"]]:
    """Yield the rows of ``side`` minus ``centre`` in float64, in blocks to save memory."""
    centre = None if centre is None else centre.to(side.device, torch.float64)
    for part in side.split(VECTORS_AT_ONCE):
        yield part.double() if centre is None else part.double() - centre


def lengths(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None = None
) -> Float64[Tensor, " n"]:
    """Return the norm of each row minus ``centre``, in float64."""
    parts = in_double(side, centre)
    return torch.cat([torch.linalg.vector_norm(part, dim=1).cpu() for part in parts])


def inner(
    side: Float[Tensor, "n size"],
    vector: Float[Tensor, " size"],
    centre: Float[Tensor, " size"] | None = None,
) -> Float64[np.ndarray, " n"]:
    """Return the inner product of each row minus ``centre`` with ``vector``, in float64."""
    vector = vector.to(side.device, torch.float64)
    if centre is None and row_sums.fits(side):
        return row_sums.inner_with(side, vector)
    return torch.cat([(part @ vector).cpu() for part in in_double(side, centre)]).numpy()


def typical_length(of_x: Float64[Tensor, " n"], of_y: Float64[Tensor, " m"]) -> float:
    """Return the median of the lengths of both sides without zeros; 1 if all are 0."""
    both = torch.cat([of_x, of_y])
    return float(both[both > 0].median()) if (both > 0).any() else 1.0


@dataclass(frozen=True)
class Moments:
    """Lengths and sum of the vectors of one side, in float64."""

    lengths: Float64[Tensor, " n"]
    total: Float64[Tensor, " size"]
    """Sum of all vectors."""

    @classmethod
    def of(
        cls, side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None = None
    ) -> Moments:
        """Compute the moments of a side minus ``centre``."""
        if centre is None and row_sums.fits(side):
            return cls(*row_sums.lengths_and_total(side))
        return cls(lengths(side, centre), _sum(side, centre))


def has_common_part(sides: tuple[Moments, Moments]) -> bool:
    """Return whether the mean of a side is longer than ``SMALL_MEAN`` of the median vector."""
    both = np.concatenate([side.lengths for side in sides])
    typical = np.partition(both, len(both) // 2)[len(both) // 2]
    means = (np.linalg.norm(side.total) / len(side.lengths) for side in sides)
    return bool(max(means) > SMALL_MEAN * typical)


def common_centre(x: Float[Tensor, "n size"], y: Float[Tensor, "m size"]) -> Float[Tensor, " size"]:
    """Return a mean over the rows of both sides, in float64 if one side is float64, else float32.

    A row longer than the median has a weight inversely proportional to its length. Otherwise a few
    huge vectors would pull the mean far from all other vectors, and float32 could no longer
    distinguish those after the subtraction.
    """
    of_sides = lengths(x), lengths(y)
    typical = typical_length(*of_sides)
    total, weight = torch.zeros(x.shape[1], dtype=torch.float64), 0.0
    for side, of_side in zip((x, y), of_sides, strict=True):
        shares = typical / of_side.clamp(min=typical)
        weight += float(shares.sum())
        parts = zip(shares.split(VECTORS_AT_ONCE), in_double(side, None), strict=True)
        total += torch.stack([(share.to(part.device) @ part).cpu() for share, part in parts]).sum(0)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return (total / weight).to(x.device, dtype)


def chance_value(x: Float[Tensor, "n size"], y: Float[Tensor, "m size"]) -> float:
    """Return the expected value of a random match in which the whole smaller side has partners."""
    return float(_sum(x) @ _sum(y)) / max(len(x), len(y))


def _sum(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None = None
) -> Float64[Tensor, " size"]:
    return torch.stack([part.sum(0).cpu() for part in in_double(side, centre)]).sum(0)


@dataclass(frozen=True)
class Chance:
    """Mean similarities of rows and columns, if all matches are equally likely.

    There are at most as many rows as columns. A common centre is subtracted. All is float64.
    """

    of_rows: Float64[np.ndarray, " n"]
    """Mean similarity of each row to all columns."""
    of_columns: Float64[np.ndarray, " m"]
    """Addition of each column: its mean similarity minus the mean over all columns. 0 if there are
    more columns than rows, since a match can then choose its columns."""
    from_centre: float
    """Difference between the values of a match without and with the subtraction of the centre
    ``c``: for ``n`` rows and columns ``c · (Σ x_i + Σ y_j) - n ‖c‖²``. 0 without a centre."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "n size"],
        y: Float[Tensor, "m size"],
        centre: Float[Tensor, " size"] | None,
        sums: tuple[Float64[Tensor, " size"], Float64[Tensor, " size"]],
    ) -> Chance:
        """Compute the means from the vectors of both sides and their sums without the centre."""
        mean_x, mean_y = sums[0] / len(x), sums[1] / len(y)
        of_columns = np.zeros(len(y))
        if len(x) == len(y):
            of_columns = inner(y, mean_x, centre) - float(mean_x @ mean_y)
        from_centre = 0.0
        if centre is not None:
            c = centre.to("cpu", torch.float64)
            from_centre = float(c @ (sums[0] + sums[1] + len(x) * c))  # sums are centred
        return cls(inner(x, mean_y, centre), of_columns, from_centre)

    @property
    def value(self) -> float:
        """Expected value of a match in which every row has a partner, without the centre."""
        return math.fsum(self.of_rows)

    def above(
        self, columns: Int64[np.ndarray, " n"], similarity: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Return the value above chance of each row's pair; they add up to that of the match."""
        return similarity - self.of_rows - self.of_columns[columns]

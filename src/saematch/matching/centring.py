"""A common centre of two sets of vectors, and what their pairs are worth by chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

VECTORS_AT_ONCE = 256
"""Vectors that are converted to float64 together."""


def in_double(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None
) -> Iterator[Float64[Tensor, "k size"]]:
    """Yield the rows of ``side`` less ``centre`` in float64, some at a time to save memory."""
    centre = None if centre is None else centre.to(side.device, torch.float64)
    for part in side.split(VECTORS_AT_ONCE):
        yield part.double() if centre is None else part.double() - centre


def lengths(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None = None
) -> Float64[Tensor, " n"]:
    """Return the norm of each row less ``centre``, in float64."""
    parts = in_double(side, centre)
    return torch.cat([torch.linalg.vector_norm(part, dim=1).cpu() for part in parts])


def inner(
    side: Float[Tensor, "n size"],
    vector: Float[Tensor, " size"],
    centre: Float[Tensor, " size"] | None = None,
) -> Float64[np.ndarray, " n"]:
    """Return the inner product of each row less ``centre`` with ``vector``, in float64."""
    vector = vector.to(side.device, torch.float64)
    return torch.cat([(part @ vector).cpu() for part in in_double(side, centre)]).numpy()


def typical_length(of_x: Float64[Tensor, " n"], of_y: Float64[Tensor, " m"]) -> float:
    """Return the median of the lengths of both sides that are not 0; 1 if all are."""
    every = torch.cat([of_x, of_y])
    return float(every[every > 0].median()) if (every > 0).any() else 1.0


def common_centre(x: Float[Tensor, "n size"], y: Float[Tensor, "m size"]) -> Float[Tensor, " size"]:
    """Return a mean over the rows of both sides, in float64 if a side is, else in float32.

    Rows longer than the median count less, in inverse proportion to their length. Otherwise a few
    huge vectors would pull the mean far from all other vectors, and float32 would no longer tell
    these apart after the subtraction.
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
    """Return the expected value of a random match in which the smaller side has partners."""
    return float(_sum(x) @ _sum(y)) / max(len(x), len(y))


def _sum(
    side: Float[Tensor, "n size"], centre: Float[Tensor, " size"] | None = None
) -> Float64[Tensor, " size"]:
    return torch.stack([part.sum(0).cpu() for part in in_double(side, centre)]).sum(0)


@dataclass(frozen=True)
class Chance:
    """What pairs of rows and columns are worth on average, if all matches are equally likely.

    For at most as many rows as columns, each less a common centre, in float64.
    """

    of_rows: Float64[np.ndarray, " n"]
    """Mean similarity of each row to all columns."""
    of_columns: Float64[np.ndarray, " m"]
    """What each column adds to that: its mean similarity less the mean over all columns. 0 where
    there are more columns than rows, since a match can then choose its columns."""
    from_centre: float
    """What is added to the value of every match if the centre is not subtracted: with ``n`` rows
    and columns and the centre ``c``, ``c · (Σ x_i + Σ y_j) - n ‖c‖²``. Without centre 0."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "n size"],
        y: Float[Tensor, "m size"],
        centre: Float[Tensor, " size"] | None,
    ) -> Chance:
        """Compute the means from the vectors of both sides."""
        sums = [_sum(side, centre) for side in (x, y)]
        mean_x, mean_y = sums[0] / len(x), sums[1] / len(y)
        of_columns = np.zeros(len(y))
        if len(x) == len(y):
            of_columns = inner(y, mean_x, centre) - float(mean_x @ mean_y)
        from_centre = 0.0
        if centre is not None:
            c = centre.to("cpu", torch.float64)
            from_centre = float(c @ (sums[0] + sums[1] + len(x) * c))  # sums are less n c each
        return cls(inner(x, mean_y, centre), of_columns, from_centre)

    @property
    def value(self) -> float:
        """Expected value of a match in which every row has a partner, less the centre."""
        return math.fsum(self.of_rows)

    def above(
        self, columns: Int64[np.ndarray, " n"], similarity: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Return what the pair of each row is worth above chance; the sum is that of the match."""
        return similarity - self.of_rows - self.of_columns[columns]

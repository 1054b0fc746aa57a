"""The proof of a match: its value, and a bound on the value of every other, from prices alone.

Nothing here knows how match and prices were found. By weak duality of the assignment problem, for
any prices ``p`` no match is worth more than ``Σ_i max_j (s_ij - p_j) + Σ_j p_j``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from saematch.matching.assignment.products import Products
from saematch.matching.match import Certificate

MOST_CONTENDERS = 64
"""Where rows have more columns that may be their best one, on average, all of a row's columns are
computed in float64 together."""


@dataclass(frozen=True)
class Proof:
    """A certificate and what it rests on."""

    certificate: Certificate
    profits: Float64[np.ndarray, " n"]
    """Of each row, ``max_j (s_ij - p_j)``, or ``outside`` if that is more: its dual variable."""

    @property
    def slack(self) -> float:
        """``bound - value``, at least 0."""
        assert self.certificate.bound is not None
        return max(0.0, self.certificate.bound - self.certificate.value)


def prove(
    products: Products,
    columns: Int64[np.ndarray, " n"],
    prices: Float64[np.ndarray, " m"],
    outside: float = -math.inf,
) -> Proof:
    """Value and bound of a match of rows to columns, exact to the rounding of float64.

    One blocked pass finds the columns that can be a row's best, and these are computed in float64.
    A row without a column (-1) is worth ``outside``. Value and bound that differ by no more than
    the rounding of their sums are made equal. Raises ``ValueError`` for a negative price where
    columns may stay free.
    """
    rows = np.flatnonzero(columns >= 0)
    assert len(np.unique(columns[rows])) == len(rows), "a column is given to two rows"
    assert len(rows) == products.n or outside > -math.inf, "a row is left without a column"
    if (products.m > products.n or outside > -math.inf) and (prices < 0).any():
        raise ValueError(
            f"prices go down to {prices.min():.3g}; where columns may stay free they must not be "
            "negative"
        )
    alone = products.n - len(rows)
    value = math.fsum(products.exact(rows, columns[rows])) + (outside * alone if alone else 0.0)
    profits = np.full(products.n, outside)
    for some, _, net in contenders(products, prices):
        np.maximum.at(profits, some, net)
    bound = math.fsum(profits) + math.fsum(prices)
    ulp = np.finfo(np.float64).eps
    rounding = 16 * ulp * float(np.abs(profits).sum() + np.abs(prices).sum())
    longest = float(products.x_lengths.sum() * products.y_lengths.max())
    assert bound >= value - rounding - products.size * ulp * longest, "weak duality is broken"
    return Proof(Certificate(value, value if bound <= value + rounding else bound), profits)


class TooManyPairsError(Exception):
    """More pairs may matter than were asked for."""


def contenders(
    products: Products,
    prices: Float64[np.ndarray, " m"],
    floor: Float64[np.ndarray, " n"] | None = None,
    most: float | int = math.inf,
) -> Iterator[tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]]]:
    """Yield rows, columns and float64 net values ``s_ij - p_j`` of the pairs that may matter.

    Without ``floor`` these are pairs that may be the best of their row; with it, all that may be
    worth at least a row's floor, and ``TooManyPairsError`` is raised for more than ``most``. "May"
    is by a bound on the rounding of the float32 products, ``g / (1 - g) ‖x_i‖ ‖y_j‖`` with
    ``g = (size + 4) 2⁻²⁴``, which holds in any order of summation.
    """
    u = torch.finfo(torch.float32).eps / 2
    share = (products.size + 4) * u / (1 - (products.size + 4) * u)
    device, paid = products.y.device, torch.from_numpy(prices)
    low, high = ((paid + sign * 2 * u * paid.abs()).float().to(device) for sign in (1, -1))
    errors = (products.x_lengths * share).float().to(device)
    lengths = (products.y_lengths * (1 + 4 * u)).float().to(device)
    found = 0
    for block, similarity in products.blocks("certificate"):
        if floor is None:
            least = torch.addr(similarity - low, errors[block], lengths, alpha=-1)
            surely = least.amax(1, keepdim=True)
        else:
            surely = torch.from_numpy(floor[block, None]).float().to(device)
            surely -= 2 * u * surely.abs()
        near = ((similarity - high).addr_(errors[block], lengths) >= surely).cpu()
        if floor is None:
            crowded = _crowded(near, products.x_lengths[block])
            if len(crowded):
                near[crowded] = False
                rows = crowded.numpy() + block.start
                columns, net = products.exact_best(rows, prices)
                yield rows, columns, net
        else:
            found += int(near.count_nonzero())
            if found > most:
                raise TooManyPairsError
        rows, columns = (index.numpy() for index in torch.nonzero(near).T)
        rows = rows + block.start
        yield rows, columns, products.exact(rows, columns) - prices[columns]


def _crowded(near: Bool[Tensor, "k m"], lengths: Float64[Tensor, " k"]) -> Int64[Tensor, " c"]:
    """Return rows for which to look at all columns is less work than at those that contend."""
    if not (lengths == 0).any() and near.count_nonzero() <= MOST_CONTENDERS * len(near):
        return torch.zeros(0, dtype=torch.int64)
    return torch.nonzero(near.sum(1) > MOST_CONTENDERS).flatten()

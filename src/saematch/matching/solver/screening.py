"""Selection of the pairs that may matter, by a bound on the rounding of float32 products.

With ``u = 2⁻²⁴`` and ``g = (size + 4) u``, the float32 similarity of two vectors, less a price, is
off by at most ``g / (1 - g) ‖x_i‖ ‖y_j‖ + 4 u |p_j|``, in any order of summation. This includes the
rounding of the vectors to float32. The selected pairs are computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from saematch.matching.solver.products import Products

MOST_CONTENDERS = 64
"""Largest number of columns that may be a row's best. For rows with more, all columns are computed
in float64 together."""


class Screen:
    """Bounds on the net values ``s_ij - p_j`` of blocks of rows."""

    def __init__(self, products: Products, prices: Float64[np.ndarray, " m"]) -> None:
        u = torch.finfo(torch.float32).eps / 2
        share = (products.size + 4) * u / (1 - (products.size + 4) * u)
        device, paid = products.y.device, torch.from_numpy(prices)
        margin = 4 * u * paid.abs() + (products.size + 4) * torch.finfo(torch.float32).tiny
        self._low, self._high = ((paid + sign * margin).float().to(device) for sign in (1, -1))
        self._errors = (products.x_lengths * share).float().to(device)
        self._lengths = (products.y_lengths * (1 + 4 * u)).float().to(device)

    def lower(self, block: slice, similarity: Float32[Tensor, "k m"]) -> Float32[Tensor, "k m"]:
        """Return lower bounds on the net values of a block of rows."""
        return (similarity - self._low).addr_(self._errors[block], self._lengths, alpha=-1)

    def upper(self, block: slice, similarity: Float32[Tensor, "k m"]) -> Float32[Tensor, "k m"]:
        """Return upper bounds on the net values of a block of rows."""
        return (similarity - self._high).addr_(self._errors[block], self._lengths)


class Alternatives(NamedTuple):
    """Net values of the rows for columns other than their own."""

    best: Float64[np.ndarray, " n"]
    """Net value, in float64, of the best column that may be better than a row's own; -inf if there
    is none."""
    bound: Float64[np.ndarray, " n"]
    """Upper bound on the net value of any column except a row's own."""


def alternatives(
    products: Products, prices: Float64[np.ndarray, " m"], columns: Int64[np.ndarray, " n"]
) -> Alternatives:
    """Return the alternatives to ``columns`` (-1: no column), from one blocked pass."""
    screen, own = Screen(products, prices), torch.from_numpy(columns)
    best, bound = np.full(products.n, -np.inf), np.empty(products.n)
    for block, similarity in products.blocks("certificate"):
        surely = screen.lower(block, similarity).amax(1, keepdim=True)
        upper = screen.upper(block, similarity)
        paired = torch.nonzero(own[block] >= 0).flatten()
        upper[paired.to(upper.device), own[block][paired].to(upper.device)] = -torch.inf
        near = upper >= surely
        bound[block] = upper.masked_fill_(near, -torch.inf).amax(1).cpu().numpy()
        near = near.cpu()
        crowded = _crowded(near, products.x_lengths[block])
        near[crowded] = False
        rows, others = (index.numpy() for index in torch.nonzero(near).T)
        rows = rows + block.start
        np.maximum.at(best, rows, products.exact(rows, others) - prices[others])
        rows = crowded.numpy() + block.start
        best[rows] = products.exact_best(rows, prices, columns[rows])
    return Alternatives(best, np.maximum(best, bound))


def pairs_above(
    products: Products,
    prices: Float64[np.ndarray, " m"],
    floor: Float64[np.ndarray, " n"],
    most: int,
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]] | None:
    """Return rows, columns and net values of all pairs that may reach the floor of their row.

    Return None for more than ``most`` pairs.
    """
    screen, u = Screen(products, prices), torch.finfo(torch.float32).eps / 2
    lowest = torch.from_numpy(floor)
    lowest = (lowest - 2 * u * lowest.abs()).float().to(products.y.device)
    parts, n_pairs = [], 0
    for block, similarity in products.blocks("last step"):
        near = screen.upper(block, similarity) >= lowest[block, None]
        n_pairs += int(near.count_nonzero())
        if n_pairs > most:
            return None
        rows, columns = (index.numpy() for index in torch.nonzero(near.cpu()).T)
        rows = rows + block.start
        parts.append((rows, columns, products.exact(rows, columns) - prices[columns]))
    rows, columns, net = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    return rows, columns, net


def _crowded(near: Bool[Tensor, "k m"], lengths: Float64[Tensor, " k"]) -> Int64[Tensor, " c"]:
    """Return the rows for which computing all columns is less work than selected columns."""
    if not (lengths == 0).any() and near.count_nonzero() <= MOST_CONTENDERS * len(near):
        return torch.zeros(0, dtype=torch.int64)
    return torch.nonzero(near.sum(1) > MOST_CONTENDERS).flatten()

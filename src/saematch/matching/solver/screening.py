"""Selection of the pairs that may matter, by a bound on the rounding of float32 products.

With ``u = 2⁻²⁴`` and ``g = (size + 4) u``, the float32 similarity of two vectors, less a price, is
off by at most ``g / (1 - g) ‖x_i‖ ‖y_j‖ + 4 u |p_j|``, in any order of summation. This includes the
rounding of the vectors to float32. The selected pairs are computed in float64.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from numba import njit
from torch import Tensor

from saematch.matching.solver.products import Products

MOST_CONTENDERS = 64
"""Largest number of columns that may be a row's best. For rows with more, all columns are computed
in float64 together."""
UNIT = 2.0**-24
"""Largest relative rounding of a float32 number."""


class Contenders(NamedTuple):
    """Columns of a block of rows, other than a row's own, that may be the best of their row."""

    rows: Int64[np.ndarray, " k"]
    """Row of each contender, counted from the first row of the block."""
    columns: Int64[np.ndarray, " k"]
    crowded: Int64[np.ndarray, " c"]
    """Rows for which computing all columns is less work than selected columns; these have no
    contenders here."""
    bound: Float64[np.ndarray, " n_block"]
    """Upper bound on the net value of any other column; -inf if there is none."""


class Screen:
    """Bounds on the net values ``s_ij - p_j`` of blocks of rows."""

    def __init__(self, products: Products, prices: Float64[np.ndarray, " m"]) -> None:
        self._products, self._prices = products, prices
        size = products.size
        self._share = (size + 4) * UNIT / (1 - (size + 4) * UNIT)
        self._underflow = (size + 4) * torch.finfo(torch.float32).tiny

    @cached_property
    def _low_and_high(self) -> tuple[Float32[Tensor, " m"], Float32[Tensor, " m"]]:
        paid = torch.from_numpy(self._prices)
        margin = 4 * UNIT * paid.abs() + self._underflow
        device = self._products.y.device
        return (paid + margin).float().to(device), (paid - margin).float().to(device)

    @cached_property
    def _errors(self) -> Float32[Tensor, " n"]:
        return (self._products.x_lengths * self._share).float().to(self._products.y.device)

    @cached_property
    def _lengths(self) -> Float32[Tensor, " m"]:
        return (self._products.y_lengths * (1 + 4 * UNIT)).float().to(self._products.y.device)

    def lower(self, block: slice, similarity: Float32[Tensor, "k m"]) -> Float32[Tensor, "k m"]:
        """Return lower bounds on the net values of a block of rows."""
        low, _ = self._low_and_high
        return (similarity - low).addr_(self._errors[block], self._lengths, alpha=-1)

    def upper(self, block: slice, similarity: Float32[Tensor, "k m"]) -> Float32[Tensor, "k m"]:
        """Return upper bounds on the net values of a block of rows."""
        _, high = self._low_and_high
        return (similarity - high).addr_(self._errors[block], self._lengths)

    def contenders(
        self, block: slice, similarity: Float32[Tensor, "k m"], own: Int64[np.ndarray, " k"]
    ) -> Contenders:
        """Return the contenders to each row's own column (-1: none), on any device."""
        column, places = torch.from_numpy(own), torch.from_numpy(np.flatnonzero(own >= 0))
        surely = self.lower(block, similarity).amax(1, keepdim=True)
        upper = self.upper(block, similarity)
        upper[places.to(upper.device), column[places].to(upper.device)] = -torch.inf
        near = upper >= surely
        bound = upper.masked_fill_(near, -torch.inf).amax(1).double().cpu().numpy()
        near = near.cpu()
        crowded = _crowded(near, self._products.x_lengths[block])
        near[crowded] = False
        rows, columns = (index.numpy() for index in torch.nonzero(near).T)
        return Contenders(rows, columns, crowded.numpy(), bound)

    def contenders_in_memory(
        self,
        block: slice,
        similarity: Float32[Tensor, "k m"],
        own: Int64[np.ndarray, " k"],
        net: Float64[np.ndarray, " k"],
    ) -> Contenders | None:
        """Return the same from one pass without copies; None if there are too many contenders."""
        k = len(similarity)
        rows, columns = np.empty((2, MOST_CONTENDERS * k), np.int64)
        errors, slips = self._for_kernel
        bound = np.empty(k)
        n_near = find_near(
            similarity.numpy(), self._prices, errors[block], self._products.y_lengths.numpy(),
            slips, own, net, rows, columns, bound,
        )  # fmt: skip
        if n_near > len(rows):
            return None
        return Contenders(rows[:n_near], columns[:n_near], np.empty(0, np.int64), bound)

    @cached_property
    def _for_kernel(self) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
        """Return the rounding of a row's products with unit vectors, and that of each price."""
        slips = 4 * np.finfo(np.float64).eps * np.abs(self._prices) + self._underflow
        return self._share * self._products.x_lengths.numpy(), slips


class Alternatives(NamedTuple):
    """Net values of the rows for columns other than their own."""

    best: Float64[np.ndarray, " n"]
    """Net value, in float64, of the best column that may be better than a row's own; -inf if there
    is none."""
    bound: Float64[np.ndarray, " n"]
    """Upper bound on the net value of any column except a row's own."""


def alternatives(
    products: Products,
    prices: Float64[np.ndarray, " m"],
    columns: Int64[np.ndarray, " n"],
    net: Float64[np.ndarray, " n"],
) -> Alternatives:
    """Return the alternatives to ``columns`` (-1: no column), whose net values are ``net``.

    One blocked pass finds them.
    """
    screen = Screen(products, prices)
    best, bound = np.full(products.n, -np.inf), np.empty(products.n)
    for block, similarity in products.blocks("certificate"):
        near = None
        if products.held is not None:
            near = screen.contenders_in_memory(block, similarity, columns[block], net[block])
        if near is None:
            near = screen.contenders(block, similarity, columns[block])
        bound[block] = near.bound
        rows, crowded = near.rows + block.start, near.crowded + block.start
        np.maximum.at(best, rows, products.exact(rows, near.columns) - prices[near.columns])
        if len(crowded):
            best[crowded] = products.exact_best(crowded, prices, columns[crowded])
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
    screen = Screen(products, prices)
    lowest = torch.from_numpy(floor)
    lowest = (lowest - 2 * UNIT * lowest.abs()).float().to(products.y.device)
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


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
@no_type_check
def _largest(of_row, prices, error, lengths, slips, sign, start, stop):
    """Return the largest upper bound on net values (``sign`` 1), or lower bound (-1)."""
    largest = -np.inf
    for j in range(start, stop):
        largest = max(largest, of_row[j] - prices[j] + error * lengths[j] + sign * slips[j])
    return largest


@njit(cache=True, nogil=True)
@no_type_check
def find_near(similarity, prices, errors, lengths, slips, own, net, rows, columns, bound):
    """List the contenders of all rows and bound the other columns; return how many there are.

    A row has none if its own net value is surely at least that of all other columns.
    """
    m, n_near = len(prices), 0
    for i in range(len(similarity)):
        of_row, error, until = similarity[i], errors[i], own[i] if own[i] >= 0 else m
        largest = max(
            _largest(of_row, prices, error, lengths, slips, 1.0, 0, until),
            _largest(of_row, prices, error, lengths, slips, 1.0, until + 1, m),
        )
        bound[i] = largest
        if largest <= net[i]:
            continue
        surely, most = _largest(of_row, prices, -error, lengths, slips, -1.0, 0, m), -np.inf
        for j in range(m):
            upper = of_row[j] - prices[j] + error * lengths[j] + slips[j]
            if j == own[i]:
                continue
            if upper < surely:
                most = max(most, upper)
                continue
            if n_near < len(rows):
                rows[n_near], columns[n_near] = i, j
            n_near += 1
        bound[i] = most
    return n_near

"""The forward auction: rows bid for columns until every row has one (docs/solver_method.md).

Prices only rise while rows bid, so a row's gain from a column only falls. A short list of a row's
best columns therefore stays valid while the best of the list is at least the bound on all columns
outside it. A row first uses its ``N_HOT`` hot columns, then its candidates. If these are no longer
valid, it waits for a new scan of all columns.
"""

from __future__ import annotations

import time
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

from saematch.matching.solver.candidates import Candidates

N_HOT = 32
"""Number of columns that a row compares before it bids."""
RAISE_AT_MOST = 4.0
"""Largest rise of a price by one bid, in epsilons, without the one epsilon that is always added. A
bid could rise until the row is indifferent. Smaller bids keep uncontested columns cheap, and so
candidates stay valid longer.
"""
SCANNED_TOGETHER = 32
"""Least number of rows in a scan: up to it, a product takes only the time to read all columns."""
LOOKS_AT_A_TIME = 1 << 28
"""Similarities of one call, about a second of work; then the time limit and signals are checked."""

FREE, OUT = -1, -2
"""Partner codes: not assigned yet; unmatched by choice."""


class Auction:
    """Prices and holders of one auction; each stage ends in epsilon-complementary slackness.

    At the end of a stage no row would gain more than epsilon by another column, or by staying
    unmatched, which is worth ``outside``.
    """

    def __init__(
        self, candidates: Candidates, prices: Float64[np.ndarray, " m"], outside: float
    ) -> None:
        n, m = len(candidates.bound), len(prices)
        self.candidates = candidates
        self.prices = prices.copy()
        self.outside = outside
        self.partner = np.full(n, FREE)
        """Column of each row; FREE or OUT."""
        self.worth = np.full(n, outside)
        """Similarity of each row to its column, or ``outside``."""
        self.holder = np.full(m, FREE)
        """Row of each column; FREE."""
        self.n_scanned_again = 0
        self._hot_values = np.zeros((n, min(N_HOT, m)), np.float32)
        self._hot_columns = np.full((n, min(N_HOT, m)), -1, np.int32)
        self._hot_bound = np.full(n, np.inf)

    def stage(self, epsilon: float, deadline: float) -> bool:
        """Free all columns and auction them again, starting from the current prices.

        Return False if ``deadline`` (of ``time.monotonic``) passed before every row was assigned.
        """
        candidates, n = self.candidates, len(self.partner)
        self.partner[:], self.worth[:], self.holder[:] = FREE, self.outside, FREE
        stack, waiting = np.arange(n)[::-1].copy(), np.empty(n, np.int64)
        n_stack, n_waiting = n, 0
        while n_stack or n_waiting:
            if time.monotonic() > deadline:
                return False
            if not n_stack:
                self._scan(waiting[:n_waiting])
                stack[:n_waiting], n_stack, n_waiting = waiting[:n_waiting], n_waiting, 0
            n_stack, n_waiting = _bid(
                epsilon, self.outside, self.prices, self.holder, self.partner, self.worth,
                stack, n_stack, waiting, n_waiting,
                candidates.values, candidates.columns, candidates.bound, candidates.whole,
                self._hot_values, self._hot_columns, self._hot_bound,
            )  # fmt: skip
        return True

    def _scan(self, waiting: Int64[np.ndarray, " k"]) -> None:
        """Scan all waiting rows, and rows that will probably wait soon if the batch has room."""
        spare = SCANNED_TOGETHER - len(waiting)
        rows = waiting
        if spare > 0:
            holding = np.flatnonzero(self.partner >= 0)
            net = self.worth[holding] - self.prices[self.partner[holding]]
            margin = net - self.candidates.bound[holding]
            rows = np.append(waiting, holding[np.argsort(margin)[:spare]])
        self.candidates.scan(rows, self.prices)
        self._hot_bound[rows], self._hot_columns[rows] = np.inf, -1
        self.n_scanned_again += len(rows)

    def lower_prices(self, by: float) -> None:
        """Lower all prices, but not below 0, and raise the bounds on net values by as much."""
        by = min(by, float(self.prices.max()))
        np.maximum(self.prices - by, 0.0, out=self.prices)
        self._hot_bound += by
        self.candidates.bound += by

    @property
    def value(self) -> float:
        """Current total similarity, with ``outside`` for every row without a column."""
        return float(self.worth.sum())

    @property
    def stranded(self) -> float:
        """Total price of the columns without a row: 0 at an optimum."""
        return float(self.prices[self.holder == FREE].sum())

    def columns(self) -> Int64[np.ndarray, " n"]:
        """Return each row's column; -1 for none."""
        return np.where(self.partner >= 0, self.partner, -1)


@njit(cache=True, nogil=True)
@no_type_check
def _bid(
    epsilon, outside, prices, holder, partner, worth,
    stack, n_stack, waiting, n_waiting,
    values, columns, bound, whole, hot_values, hot_columns, hot_bound,
):  # fmt: skip
    """Assign the rows on the stack; return how many remain on it, and how many wait."""
    n_looks = 0
    while n_stack > 0 and n_looks < LOOKS_AT_A_TIME:
        n_stack -= 1
        row = stack[n_stack]
        refilled = False
        while True:
            best, second, column, value = -np.inf, -np.inf, -1, 0.0
            n_looks += hot_columns.shape[1]
            for k in range(hot_columns.shape[1]):
                j = hot_columns[row, k]
                if j < 0:
                    break
                net = hot_values[row, k] - prices[j]
                if net > best:
                    best, second, column, value = net, best, j, hot_values[row, k]
                elif net > second:
                    second = net
            rest = hot_bound[row]
            if max(best, rest) <= outside:
                partner[row], worth[row] = OUT, outside
                break
            if best >= rest - 0.5 * epsilon:
                alternative = max(second, rest, outside)
                gain = best - alternative if alternative > -np.inf else 0.0
                prices[column] += min(gain, RAISE_AT_MOST * epsilon) + epsilon
                loser = holder[column]
                if loser >= 0:
                    partner[loser], worth[loser] = FREE, outside
                    stack[n_stack] = loser
                    n_stack += 1
                holder[column], partner[row], worth[row] = row, column, value
                break
            if refilled:
                waiting[n_waiting] = row
                n_waiting += 1
                break
            _refill(row, prices, values, columns, bound, whole, hot_values, hot_columns, hot_bound)
            n_looks += values.shape[1]
            refilled = True
    return n_stack, n_waiting


_CHUNK = 64


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
@no_type_check
def _refill(row, prices, values, columns, bound, whole, hot_values, hot_columns, hot_bound):
    """Choose a row's hot columns again, and update the bound on its net value of all others.

    A chunk is skipped if its best column is no better than the worst of the list. Each row starts
    at another chunk, so that rows for which many columns are equally good choose different ones.
    """
    n_hot, of_row = hot_columns.shape[1], values[row]
    names = columns[0] if whole else columns[row]
    nets = np.full(n_hot, -np.inf)
    hot_columns[row, :] = -1
    n_chunks = (len(of_row) + _CHUNK - 1) // _CHUNK
    first = (row * 40503) % n_chunks
    for step in range(n_chunks):
        start = ((first + step) % n_chunks) * _CHUNK
        stop = min(len(of_row), start + _CHUNK)
        best = -np.inf
        if whole:
            for k in range(start, stop):
                best = max(best, of_row[k] - prices[k])
        else:
            for k in range(start, stop):
                best = max(best, of_row[k] - prices[names[k]])
        if best <= nets[n_hot - 1]:
            continue
        for k in range(start, stop):
            net = of_row[k] - prices[names[k]]
            if net > nets[n_hot - 1]:
                place = n_hot - 1
                while place > 0 and nets[place - 1] < net:
                    nets[place] = nets[place - 1]
                    hot_values[row, place] = hot_values[row, place - 1]
                    hot_columns[row, place] = hot_columns[row, place - 1]
                    place -= 1
                nets[place] = net
                hot_values[row, place], hot_columns[row, place] = of_row[k], names[k]
    hot_bound[row] = max(nets[n_hot - 1], bound[row])

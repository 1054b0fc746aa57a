"""The forward auction: rows bid for columns until every row holds one (docs/solver.md).

Prices only rise while rows bid. So what a row would gain from a column only falls, and a short list
of its best columns stays complete for as long as the best of the list is at least the bound on all
columns outside it. A row first looks at its ``N_HOT`` hot columns, then at its candidates, and only
when those fail too does it wait for a new scan of all columns.
"""

from __future__ import annotations

import time
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

from saematch.matching.solver.candidates import Candidates

N_HOT = 32
"""Columns that a row looks at before it bids."""
RAISE_AT_MOST = 4.0
"""No bid raises a price by more than this many epsilons, and one more. A bid may go up to where the
row is indifferent; staying below keeps uncontested columns cheap, and so candidates valid longer.
"""
SCANNED_TOGETHER = 32
"""Rows of a scan at least: the product of so few takes the time that reading all columns takes."""
LOOKS_AT_A_TIME = 1 << 28
"""Similarities looked at in one call, about a second: then the clock and signals are looked at."""

FREE, OUT = -1, -2
"""In place of a partner: has none yet; has chosen to stay unmatched."""


class Auction:
    """Prices and holders of one auction; a stage brings them to epsilon-complementary slackness.

    At the end of a stage no row would gain more than epsilon by changing its column (or by staying
    out, which is worth ``outside`` to it).
    """

    def __init__(
        self, candidates: Candidates, prices: Float64[np.ndarray, " m"], outside: float
    ) -> None:
        n, m = len(candidates.bound), len(prices)
        self.candidates = candidates
        self.prices = prices.copy()
        self.outside = outside
        self.partner = np.full(n, FREE)
        """Of each row, its column; FREE or OUT."""
        self.worth = np.full(n, outside)
        """Of each row, the similarity to its column, or ``outside``."""
        self.holder = np.full(m, FREE)
        """Of each column, its row; FREE."""
        self.n_scanned_again = 0
        self._hot_values = np.zeros((n, min(N_HOT, m)), np.float32)
        self._hot_columns = np.full((n, min(N_HOT, m)), -1, np.int32)
        self._hot_bound = np.full(n, np.inf)

    def stage(self, epsilon: float, deadline: float) -> bool:
        """Take all columns away and auction them again at the present prices.

        Returns False if ``deadline`` (of ``time.monotonic``) passed before every row was served.
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
        """Scan the rows that wait and, as few cost as much as one, those likely to be next."""
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
        """Lower all prices, none below 0; what was bounded may now be worth that much more."""
        by = min(by, float(self.prices.max()))
        np.maximum(self.prices - by, 0.0, out=self.prices)
        self._hot_bound += by
        self.candidates.bound += by

    @property
    def value(self) -> float:
        """Total similarity at present, ``outside`` for every row that has no column."""
        return float(self.worth.sum())

    @property
    def stranded(self) -> float:
        """Total price of the columns that nobody holds: 0 at an optimum."""
        return float(self.prices[self.holder == FREE].sum())

    def columns(self) -> Int64[np.ndarray, " n"]:
        """Return each row's column, -1 where it has none."""
        return np.where(self.partner >= 0, self.partner, -1)


@njit(cache=True, nogil=True)
@no_type_check
def _bid(
    epsilon, outside, prices, holder, partner, worth,
    stack, n_stack, waiting, n_waiting,
    values, columns, bound, whole, hot_values, hot_columns, hot_bound,
):  # fmt: skip
    """Serve the rows on the stack; return how many are left on it, and how many wait."""
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
    """Choose a row's hot columns anew, and bound what all others are worth to it.

    Whole chunks are passed over when their best is no better than the worst of the list. Each row
    begins at another chunk, so that rows which value many columns alike choose different ones.
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

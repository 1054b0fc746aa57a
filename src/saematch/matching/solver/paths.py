"""Shortest augmenting paths (Jonker and Volgenant 1987), for similarities that fit into caches.

Bids without an epsilon assign most rows; a shortest path assigns each remaining row. All prices
start at 0 and only columns with a row rise, so that the prices of free columns are 0, which is a
condition of optimality where columns may stay free. A row may stay unmatched at the end of a path.
The last sweeps move the prices away from the ends of the optimal ones, which gives more rows a
positive margin over their alternatives. The margins decide which pairs are certain
(``certificate``).
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numba import njit

FREE, OUT = -1, -2
"""Partner codes: not assigned yet; unmatched by choice."""
BIDS_A_ROW = 2
"""Mean number of bids, per row without a column, after which paths assign the rest."""
SWEEPS = 1
"""Number of sweeps that raise and lower prices; each halves the margins that could be given up."""
_CHUNK = 64
_FAST = {"nnan", "nsz", "reassoc"}


def shortest_paths(
    similarity: Float32[np.ndarray, "n m"], outside: float
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """Return an optimal match of the given numbers, and prices that prove it.

    There are at most as many rows as columns, or rows may stay unmatched, which is worth
    ``outside``. A row without a column has -1. The time is at most ``O(n² m)``.
    """
    n, m = similarity.shape
    columns, prices = np.empty(n, np.int64), np.zeros(m)
    assign(similarity, outside, prices, columns)
    return columns, prices


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _best_net(of_row, prices, start, stop):
    best = -np.inf
    for j in range(start, stop):
        best = max(best, of_row[j] - prices[j])
    return best


@njit(cache=True, nogil=True)
@no_type_check
def _best_two(of_row, prices):
    """Return the two best net values of a row, and the column of the best."""
    best, chunk, m = -np.inf, 0, len(of_row)
    for start in range(0, m, _CHUNK):
        net = _best_net(of_row, prices, start, min(m, start + _CHUNK))
        if net > best:
            best, chunk = net, start
    column = _find(of_row, prices, best, chunk)
    second = max(_best_net(of_row, prices, 0, column), _best_net(of_row, prices, column + 1, m))
    return best, second, column


@njit(cache=True, nogil=True)
@no_type_check
def _find(of_row, prices, net, start):
    """Return the first column, from ``start`` on, of this net value."""
    for j in range(start, len(of_row)):
        if of_row[j] - prices[j] == net:
            return j
    return -1


@njit(cache=True, nogil=True)
@no_type_check
def _bid(similarity, outside, prices, partner, holder):
    """Let each row take its best column at a price that makes it indifferent; return the rest.

    The row that loses a column bids next. If the two best columns tie, no price rises: the row
    takes a free one of the two, or the loser is left to the paths.
    """
    n = len(similarity)
    left, n_left, n_bids = np.empty(n, np.int64), 0, 0
    for first in range(n):
        row = first
        while row >= 0:
            n_bids += 1
            best, second, column = _best_two(similarity[row], prices)
            if best <= outside:
                partner[row] = OUT
                break
            rise = best - max(second, outside)
            if second == best and holder[column] >= 0:
                column = _find(similarity[row], prices, best, column + 1)
            if rise > 0 and rise < np.inf:
                prices[column] += rise
            loser = holder[column]
            holder[column], partner[row] = row, column
            row = loser
            if loser >= 0:
                partner[loser] = FREE
                if rise <= 0 or n_bids > BIDS_A_ROW * n:
                    left[n_left] = loser
                    n_left += 1
                    break
    return left[:n_left]


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _relax(of_row, prices, distance, row, tentative, before):
    """Shorten the paths to all columns by way of ``row``; a distance of -inf is final."""
    for j in range(len(of_row)):
        by_row = distance - (of_row[j] - prices[j])
        shorter = by_row < tentative[j]
        tentative[j] = by_row if shorter else tentative[j]
        before[j] = row if shorter else before[j]


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _least(tentative, start, stop):
    least = np.inf
    for j in range(start, stop):
        least = min(least, np.inf if tentative[j] == -np.inf else tentative[j])
    return least


@njit(cache=True, nogil=True)
@no_type_check
def _nearest(tentative, holder):
    """Return the nearest column that is not final, and its distance; a free one if there is."""
    nearest, chunk, m = np.inf, 0, len(tentative)
    for start in range(0, m, _CHUNK):
        least = _least(tentative, start, min(m, start + _CHUNK))
        if least < nearest:
            nearest, chunk = least, start
    column = -1
    for j in range(chunk, min(m, chunk + _CHUNK)):
        if tentative[j] == nearest:
            column = j
            if holder[j] < 0:
                break
    return nearest, column


@njit(cache=True, nogil=True)
@no_type_check
def _augment(similarity, outside, prices, partner, holder, left):
    """Assign each row that is left along a shortest path of reduced costs (Dijkstra)."""
    m = len(prices)
    tentative, reached = np.empty(m), np.empty(m)
    before, final = np.empty(m, np.int64), np.empty(m, np.int64)
    for first in left:
        tentative[:] = np.inf
        row, distance, n_final = first, 0.0, 0
        profit = max(_best_two(similarity[row], prices)[0], outside)
        way_out, last = np.inf, -1
        while True:
            _relax(similarity[row], prices, distance + profit, row, tentative, before)
            if distance + profit - outside < way_out:
                way_out, last = distance + profit - outside, row
            nearest, column = _nearest(tentative, holder)
            if way_out <= nearest or holder[column] < 0:
                break
            tentative[column] = -np.inf
            final[n_final], reached[n_final] = column, nearest
            n_final += 1
            row, distance = holder[column], nearest
            profit = similarity[row, column] - prices[column]
        for k in range(n_final):
            prices[final[k]] += min(way_out, nearest) - reached[k]
        if way_out <= nearest:
            column, partner[last] = partner[last], OUT
            if last == first:
                continue
        row = -1
        while row != first:
            row = before[column]
            holder[column] = row
            column, partner[row] = partner[row], column


@njit(cache=True, nogil=True)
@no_type_check
def _raise(similarity, outside, prices, partner):
    """Raise the price of each row's column by half of the row's margin over alternatives.

    The row still prefers its column, and other rows only lose an alternative.
    """
    for row in range(len(partner)):
        column = partner[row]
        if column >= 0:
            of_row = similarity[row]
            second = max(
                _best_net(of_row, prices, 0, column),
                _best_net(of_row, prices, column + 1, len(prices)),
                outside,
            )
            margin = of_row[column] - prices[column] - second
            if 0 < margin < np.inf:
                prices[column] += 0.5 * margin


@njit(cache=True, nogil=True)
@no_type_check
def _lower(similarity, outside, prices, columns):
    """Lower the price of each row's column by half of what any other row would need to want it.

    The price stays at least 0 if columns may stay free.
    """
    n, m = similarity.shape
    lowest = -np.inf if n == m and outside == -np.inf else 0.0
    needed = np.full(m, np.inf)
    for row in range(n):
        column, profit = columns[row], outside
        if column >= 0:
            profit, at_own = similarity[row, column] - prices[column], needed[column]
        _take_least(similarity[row], prices, profit, needed)
        if column >= 0:
            needed[column] = at_own
    for row in range(n):
        column = columns[row]
        if column >= 0 and 0 < needed[column] < np.inf:
            lowered = prices[column] - 0.5 * needed[column]
            prices[column] = max(lowered, min(lowest, prices[column]))


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _take_least(of_row, prices, profit, needed):
    """Lower each number to what this row would have to gain before it wants the column."""
    for j in range(len(prices)):
        needed[j] = min(needed[j], profit - (of_row[j] - prices[j]))


@njit(cache=True, nogil=True)
@no_type_check
def assign(similarity, outside, prices, columns):
    """Fill in columns and prices, which are 0 (``shortest_paths``)."""
    holder = np.full(len(prices), FREE)
    columns[:] = FREE
    left = _bid(similarity, outside, prices, columns, holder)
    _augment(similarity, outside, prices, columns, holder, left)
    for _ in range(SWEEPS):
        _raise(similarity, outside, prices, columns)
        _lower(similarity, outside, prices, columns)
    for row in range(len(columns)):
        columns[row] = max(columns[row], -1)

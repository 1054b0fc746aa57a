"""Small problems: match, prices and proof from one compiled function.

Below a thousand features, calls of NumPy and torch take longer than their work. This function
makes the same proof as ``certificate`` for float32 vectors whose similarities fit into caches. It
refuses unusual vectors; the general way then solves the problem or names the mistake.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from saematch.core.files import hashed
from saematch.core.match import Certificate
from saematch.matching import row_sums
from saematch.matching.centring import SMALL_MEAN
from saematch.matching.row_sums import inner_product, squares_and_total
from saematch.matching.solver import paths, screening
from saematch.matching.solver.certificate import MOST_OF_VALUE, Proof, Result
from saematch.matching.solver.paths import assign
from saematch.matching.solver.products import Regime, full_precision
from saematch.matching.solver.screening import MOST_CONTENDERS, UNIT, find_near

_EPS, _TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).tiny)


def solve_small(
    x: Float[Tensor, "n size"], y: Float[Tensor, "m size"], outside: float
) -> Result | None:
    """Return an optimal match with its proof; None for unusual vectors.

    These are vectors with a common part or with values that are not finite, very short or very
    long vectors, and rows for which many columns tie. ``row_sums.fits(x, y)`` must hold.
    """
    n, m = len(x), len(y)
    with full_precision():
        similarity = torch.mm(x, y.T).numpy()
    columns, prices, profits = np.empty(n, np.int64), np.zeros(m), np.empty(n)
    certain = np.zeros(n, np.bool_)
    usual, value, slack, chance, to_win, n_90, n_pairs, n_certain = _solve(
        x.numpy(), y.numpy(), similarity, outside, columns, prices, profits, certain
    )
    if not usual:
        return None
    share = n_certain / n_pairs if n_pairs else None
    if outside > -math.inf:
        certificate = Certificate(value, value + slack, certain=share)
    else:
        gap = slack / to_win if n_90 >= 0 else 0.0
        certificate = Certificate(
            value, value + slack, chance, gap, n_90 if n_90 > 0 else None, share
        )
    return Result(columns, prices, Proof(certificate, profits, slack, certain), Regime.WHOLE)


@njit(cache=True, nogil=True)
@no_type_check
def _plus(total, number):
    """Return the sum and its correction with one more number (Neumaier 1974)."""
    rounded, correction = total
    larger = rounded + number
    if np.abs(rounded) >= np.abs(number):
        return larger, correction + ((rounded - larger) + number)
    return larger, correction + ((number - larger) + rounded)


@njit(cache=True, nogil=True)
@no_type_check
def _subtract_chance(x, similarity, mean_y, worth, columns):
    """Subtract from the worth of each row its value in a random match (``Chance.above``).

    For sides of one size the means are those of the float32 products, whose rounding does not
    matter here since there is no common part.
    """
    n, m = similarity.shape
    if n < m:
        for i in range(n):
            worth[i] -= inner_product(x[i], mean_y)
        return
    of_columns = np.zeros(m)
    for i in range(n):
        of_row = 0.0
        for j in range(m):
            of_row += similarity[i, j]
            of_columns[j] += similarity[i, j]
        worth[i] -= of_row / m
    mean = of_columns.sum() / (n * m)
    for i in range(n):
        worth[i] -= of_columns[columns[i]] / n - mean


@njit(cache=True, nogil=True)
@no_type_check
def _n_most(above):
    """Return the least number of pairs with 90 % of the value above chance; 0 if it is 0."""
    total, so_far = above.sum(), 0.0
    if total <= 0:
        return 0
    above.sort()
    for k in range(len(above)):
        so_far += above[len(above) - 1 - k]
        if so_far >= MOST_OF_VALUE * total:
            return k + 1
    return len(above)


def _compiled(stamp: str) -> Any:
    """Return the kernel.

    Numba keeps compiled kernels by the time of their own file and the variables around them.
    ``stamp`` is such a variable, so that a change of kernels in other files is noticed.
    """

    @njit(cache=True, nogil=True)
    @no_type_check
    def solve(x, y, similarity, outside, columns, prices, profits, certain):
        """Fill in the arrays; return whether all is usual, and the numbers of the certificate.

        ``n_90`` is -1 if every match is worth the same, and 0 if no match is better than chance.
        """
        refused = False, 0.0, 0.0, 0.0, 0.0, 0, 0, 0
        if not len(stamp):
            return refused
        (n, size), m, complete = x.shape, len(y), outside == -np.inf
        of_x, of_y, total_x, total_y = np.empty(n), np.empty(m), np.zeros(size), np.zeros(size)
        squares_and_total(x, of_x, total_x)
        squares_and_total(y, of_y, total_y)
        of_x, of_y = np.sqrt(of_x), np.sqrt(of_y)
        longest = of_y.max()
        for length in (of_x.max(), longest, of_x.max() * longest):
            if not 1e-15 < length < 1e15:
                return refused
        if complete and n == m:
            typical = np.median(np.append(of_x, of_y))
            for total in (total_x, total_y):
                if np.sqrt(inner_product(total, total)) > SMALL_MEAN * typical * n:
                    return refused
        assign(similarity, outside, prices, columns)

        worth, net = np.full(n, outside), np.full(n, outside)
        free, n_pairs = np.ones(m, np.bool_), 0
        for i in range(n):
            j = columns[i]
            if j >= 0:
                worth[i], free[j] = inner_product(x[i], y[j]), False
                net[i] = worth[i] - prices[j]
                n_pairs += 1
        most = MOST_CONTENDERS * n
        rows, near = np.empty(most, np.int64), np.empty(most, np.int64)
        bound, errors = np.empty(n), of_x * ((size + 4) * UNIT / (1 - (size + 4) * UNIT))
        slips = np.abs(prices) * (4 * _EPS) + (size + 4) * _TINY
        n_near = find_near(similarity, prices, errors, of_y, slips, columns, net, rows, near, bound)
        if n_near > len(near):
            return refused
        best = np.full(n, outside)
        for k in range(n_near):
            i, j = rows[k], near[k]
            best[i] = max(best[i], inner_product(x[i], y[j]) - prices[j])

        value, costs, possible = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
        margin = bound
        for i in range(n):
            profits[i] = max(net[i], best[i])
            cost, scale = profits[i] - net[i], np.abs(profits[i]) + np.abs(worth[i] - net[i])
            off = _EPS * ((size + 8) * of_x[i] * longest + scale)
            margin[i] = net[i] - max(best[i], bound[i]) - off
            value, possible = _plus(value, worth[i]), _plus(possible, cost + off)
            if cost > 16 * _EPS * (of_x[i] * longest + scale):
                costs = _plus(costs, cost)
        for j in range(m):
            if free[j]:
                costs, possible = _plus(costs, prices[j]), _plus(possible, prices[j])
        n_certain = 0
        for i in range(n):
            certain[i] = columns[i] >= 0 and margin[i] > possible[0] + possible[1]
            n_certain += certain[i]
        worth_all, slack = value[0] + value[1], costs[0] + costs[1]
        if not complete:
            return True, worth_all, slack, 0.0, 0.0, 0, n_pairs, n_certain

        chance = inner_product(total_x, total_y) / m
        to_win = worth_all + slack - chance
        if to_win <= size * _EPS * of_x.sum() * longest:
            return True, worth_all, slack, chance, to_win, -1, n_pairs, n_certain
        _subtract_chance(x, similarity, total_y / m, worth, columns)
        n_90 = _n_most(worth)
        return True, worth_all, slack, chance, to_win, n_90, n_pairs, n_certain

    return solve


_solve = _compiled(hashed([inspect.getsource(module) for module in (paths, row_sums, screening)]))

"""The proof of a match: its value, and a bound on the value of all matches, from prices alone.

The proof does not depend on how match and prices were computed. With prices ``p``, profits
``π_i = max_j (s_ij - p_j)`` and reduced costs ``r_ij = π_i + p_j - s_ij >= 0``, a match ``Q`` is
worth ``Σ_i π_i + Σ_j p_j`` minus its reduced costs and minus the prices of its free columns. So no
match is worth more than ``Σ_i π_i + Σ_j p_j`` (weak duality), and the ``slack`` of a
match is the sum of its own reduced costs and of the prices of its free columns.

A match without a pair ``(i, P(i))`` that ``P`` has costs at least the margin
``π_i - max_{j ≠ P(i)} (s_ij - p_j)``. An optimal match costs at most the slack of ``P``. So each
pair whose margin exceeds the slack is in every optimal match: it is ``certain``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from saematch.core.errors import InputError
from saematch.core.match import Certificate
from saematch.matching.solver.products import Products, Regime
from saematch.matching.solver.screening import alternatives

MOST_OF_VALUE = 0.9
"""Share of the value above chance that ``Certificate.n_90`` pairs carry."""


@dataclass(frozen=True)
class Proof:
    """A certificate and the numbers that it is computed from, without the centre."""

    certificate: Certificate
    profits: Float64[np.ndarray, " n"]
    """Dual variable of each row: ``max_j (s_ij - p_j)``, or ``outside`` if that is larger."""
    slack: float
    """``bound - value``, at least 0."""
    certain: Bool[np.ndarray, " n"]
    """Whether every optimal match contains the pair of each row; False if this is not proven or the
    row has no pair."""


@dataclass(frozen=True)
class Result:
    """A match of rows to columns, the prices that prove it, and how it was computed."""

    columns: Int64[np.ndarray, " n"]
    """Column of each row; -1 for none."""
    prices: Float64[np.ndarray, " m"]
    proof: Proof
    regime: Regime
    in_time: bool = True
    """Whether the last stage ended before the time limit."""
    n_scanned_again: int = 0
    """Rows whose candidates were chosen again."""


def prove(
    products: Products,
    columns: Int64[np.ndarray, " n"],
    prices: Float64[np.ndarray, " m"],
    outside: float = -math.inf,
) -> Proof:
    """Return value and bound of a match of rows to columns, exact to the rounding of float64.

    One blocked pass finds the columns that can be a row's best, and computes these in float64. A
    row without a column (-1) is worth ``outside``. Reduced costs within the rounding of float64
    count as 0. Raises ``InputError`` for a negative price if columns may stay free.
    """
    rows = np.flatnonzero(columns >= 0)
    taken = columns[rows]
    n_rows = np.bincount(taken, minlength=products.m)
    assert n_rows.max() <= 1, "a column is given to two rows"
    assert len(rows) == products.n or outside > -math.inf, "a row is left without a column"
    if (products.m > products.n or outside > -math.inf) and (prices < 0).any():
        raise InputError(
            f"prices go down to {prices.min():.3g}; if columns may stay free, prices must not "
            "be negative"
        )
    worth, paid = np.full(products.n, outside), np.zeros(products.n)
    worth[rows], paid[rows] = products.exact(rows, taken), prices[taken]
    net = worth - paid
    best, at_most = (
        np.maximum(part, outside) for part in alternatives(products, prices, columns, net)
    )
    profits = np.maximum(net, best)
    costs = profits - net
    stranded = math.fsum(prices[n_rows == 0])
    longest = products.x_lengths.numpy() * float(products.y_lengths.max())
    ulp = np.finfo(np.float64).eps
    off = ulp * ((products.size + 8) * longest + np.abs(profits) + np.abs(paid))
    most = math.fsum(costs) + stranded + math.fsum(off)
    certain = (columns >= 0) & (net - at_most - off > most)
    costs[costs <= 16 * ulp * (longest + np.abs(profits) + np.abs(paid))] = 0.0
    slack = math.fsum(costs) + stranded
    share = float(certain[rows].mean()) if len(rows) else None
    if outside > -math.inf:
        value = math.fsum(worth)
        certificate = Certificate(value, value + slack, certain=share)
    else:
        certificate = _over_chance(products, columns, worth, slack, share)
    return Proof(certificate, profits, slack, certain)


def _over_chance(
    products: Products,
    columns: Int64[np.ndarray, " n"],
    worth: Float64[np.ndarray, " n"],
    slack: float,
    certain: float | None,
) -> Certificate:
    """Return the certificate of a match of all rows, for the vectors as they were given.

    The gap over chance is computed before the centre is added: with it, value, bound and chance may
    be large numbers that differ little.
    """
    value, chance = math.fsum(worth), products.chance.value
    to_win = value + slack - chance
    ulp = np.finfo(np.float64).eps
    if to_win <= products.size * ulp * float(products.x_lengths.sum() * products.y_lengths.max()):
        gap, n_90 = 0.0, None  # every match is worth the same
    else:
        gap, n_90 = slack / to_win, _n_most(products.chance.above(columns, worth))
    total = value + products.chance.from_centre
    return Certificate(
        total, total + slack, chance + products.chance.from_centre, gap, n_90, certain
    )


def _n_most(above: Float64[np.ndarray, " n"]) -> int | None:
    """Return the least number of pairs with 90 % of the value above chance; None if it is 0."""
    total = math.fsum(above)
    if total <= 0:
        return None
    sums = np.cumsum(np.sort(above)[::-1])
    return int(np.argmax(sums >= MOST_OF_VALUE * total)) + 1

"""The last step to the optimum: reduced-cost fixing, then an exact sparse solver.

If a match is worth ``G`` less than the bound that prices prove, no optimal match contains a pair
whose reduced cost exceeds ``G`` (reduced-cost fixing; ``docs/solver_method.md``). Few pairs remain.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from saematch.matching.solver.certificate import Proof
from saematch.matching.solver.products import Products
from saematch.matching.solver.screening import pairs_above

MOST_PAIRS, MOST_PAIRS_A_ROW = 1_000_000, 50
"""Largest number of remaining pairs, whichever limit is larger; otherwise the step is skipped."""

GRAIN = 2.0**-46
"""Unit of weights of at most 1: as fine as their rounding, but coarse enough for exact sums."""

MOST_ROUNDS = 2000
"""Largest number of rounds of raising prices. Few are needed; if not, the proof shows a gap."""


def finish(
    products: Products, proof: Proof, prices: Float64[np.ndarray, " m"], outside: float
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " m"]] | None:
    """Return an optimal match and prices that prove it; None if too many pairs remain.

    All numbers are float64. The limit is twice ``G``, since the given prices differ by at most
    ``G`` from prices that prove the optimum. If columns may stay free, prices of free columns
    start at 0, and other prices start ``G`` lower, before they are raised as far as needed. The
    certificate decides whether the result is optimal.
    """
    n, m = products.n, products.m
    limit = 2 * proof.slack
    most = max(MOST_PAIRS, MOST_PAIRS_A_ROW * n)
    pairs = pairs_above(products, prices, proof.profits - limit, most)
    if pairs is None:
        return None
    i, j, net = pairs
    # Staying unmatched is an extra column for each row, after the others, with a price of 0.
    way_out = np.flatnonzero(proof.profits - outside <= limit)
    i, j, net = (
        np.append(i, way_out),
        np.append(j, m + way_out),
        np.append(net, outside + 0 * way_out),
    )
    price = np.append(prices, np.zeros(n))
    kept = proof.profits[i] - net <= limit
    order = np.lexsort((j[kept], i[kept]))
    i, j, net = (kind[kept][order] for kind in (i, j, net))
    may_stay_free = m > n or outside > -math.inf
    weight = proof.profits[i] - net - (price[j] if may_stay_free else 0.0)
    # For SciPy a weight of 0 is no edge, and its search may not end if sums are rounded
    weight = np.round(weight / (np.abs(weight).max() or 1.0) / GRAIN) * GRAIN + 2.0
    graph = csr_array((weight, (i, j)), shape=(n, m + n if len(way_out) else m))
    partner = min_weight_full_bipartite_matching(graph)[1].astype(np.int64)
    start = price
    if may_stay_free:
        start = np.maximum(price - proof.slack, 0.0)
        start[np.setdiff1d(np.arange(m + n), partner)] = 0.0
    return np.where(partner < m, partner, -1), _prices(i, j, net + price[j], partner, start)[:m]


def _prices(
    i: Int64[np.ndarray, " k"],
    j: Int64[np.ndarray, " k"],
    similarity: Float64[np.ndarray, " k"],
    partner: Int64[np.ndarray, " n"],
    start: Float64[np.ndarray, " m"],
) -> Float64[np.ndarray, " m"]:
    """Return the least prices, not below ``start``, at which no row prefers another column.

    They are longest paths in the graph whose arc from column ``P(i)`` to ``j`` weighs
    ``s_ij - s_i,P(i)``, computed by Bellman and Ford's rounds. They exist if the match is optimal.
    """
    matched = np.zeros(len(partner))
    in_match = j == partner[i]
    matched[i[in_match]] = similarity[in_match]
    weight, tail = similarity - matched[i], partner[i]
    ulp = np.finfo(np.float64).eps
    prices = start.copy()
    for _ in range(min(len(partner), MOST_ROUNDS)):
        needed = prices[tail] + weight
        rises = needed > prices[j] + 4 * ulp * (np.abs(similarity) + np.abs(prices[j]))
        if not rises.any():
            break
        np.maximum.at(prices, j[rises], needed[rises])
    return prices

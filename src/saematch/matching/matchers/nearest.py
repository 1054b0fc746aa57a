"""Matches that use each feature's nearest neighbours: mutual and greedy."""

from __future__ import annotations

import heapq
import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from saematch.core.match import Match
from saematch.core.specs import spec
from saematch.matching.matchers.baselines import valued
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.candidates import Candidates
from saematch.matching.solver.products import MOST_ROWS_AT_ONCE, Plan, Products, Regime

N_CANDIDATES = 256


@spec("matcher")
class MutualNearest:
    """Pairs of mutually most similar features; all other features stay unmatched."""

    one_partner: ClassVar[bool] = True

    def __call__(self, factors: Factors) -> Match:
        """Return the match; among equally similar features the first is chosen."""
        products = Products(factors.X_A, factors.X_B, in_blocks(factors))
        nearest = np.empty(products.n, np.int64)
        best = torch.full((products.m,), -math.inf)
        nearest_back = np.zeros(products.m, np.int64)
        for block, similarity in products.blocks("nearest"):
            nearest[block] = similarity.argmax(1).numpy()
            values, rows = similarity.max(0)
            better = values > best
            best = torch.where(better, values, best)
            nearest_back = np.where(better.numpy(), rows.numpy() + block.start, nearest_back)
        mutual = nearest_back[nearest] == np.arange(products.n)
        return valued(torch.from_numpy(np.where(mutual, nearest, -1)), factors)


@spec("matcher")
class Greedy:
    """The most similar pair, then the most similar pair of the remaining features, and so on."""

    one_partner: ClassVar[bool] = True

    def __call__(self, factors: Factors) -> Match:
        """Return the match; every feature of the smaller side gets a partner."""
        swapped = len(factors.X_A) > len(factors.X_B)
        if swapped:
            return self(Factors(factors.X_B, factors.X_A)).inverse()
        return valued(torch.from_numpy(_greedy(factors)), factors)


def _greedy(factors: Factors) -> Int64[np.ndarray, " n"]:
    """Return the column of each row, assigned in the order of similarity.

    A row's place in the queue is the value of its best candidate that was free at the last look. If
    a row has used up its list, its place is the last value of the list, which is an upper bound on
    its other columns. All such rows are scanned again together when the first one's turn comes.
    """
    plan = in_blocks(factors)
    products = Products(factors.X_A, factors.X_B, plan)
    free = np.ones(products.m, bool)
    candidates = Candidates(products, plan.length, np.zeros(products.m))
    partner = np.full(products.n, -1)
    queue = [(-value, row, 0) for row, value in enumerate(candidates.values[:, 0].tolist())]
    heapq.heapify(queue)
    while queue:
        _, row, place = queue[0]
        if place == plan.length:
            stale = np.array([row for _, row, place in queue if place == plan.length])
            candidates.scan(stale, np.where(free, 0.0, np.inf))
            rescanned = zip(candidates.values[stale, 0].tolist(), stale.tolist(), strict=True)
            queue = [entry for entry in queue if entry[2] < plan.length]
            queue += [(-value, row, 0) for value, row in rescanned]
            heapq.heapify(queue)
            continue
        column = candidates.columns[row, place]
        if free[column]:
            heapq.heappop(queue)
            partner[row], free[column] = column, False
            continue
        ahead = np.flatnonzero(free[candidates.columns[row, place:]])
        place = place + int(ahead[0]) if len(ahead) else plan.length
        value = float(candidates.values[row, min(place, plan.length - 1)])
        heapq.heapreplace(queue, (-value, row, place))
    return partner


def in_blocks(factors: Factors) -> Plan:
    """Return the plan of products in blocks."""
    n, m = len(factors.X_A), len(factors.X_B)
    return Plan(Regime.BLOCKS, min(m, N_CANDIDATES), min(n, MOST_ROWS_AT_ONCE))

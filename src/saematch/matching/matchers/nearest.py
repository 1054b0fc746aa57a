"""Matches that use each feature's nearest neighbours: mutual and greedy."""

from __future__ import annotations

import heapq
import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from saematch.core.match import Match, largest_in_rows
from saematch.core.specs import spec
from saematch.matching.blocks import in_blocks
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.candidates import Candidates as Lists
from saematch.matching.solver.products import Products
from saematch.matching.valued import valued, valued_pairs


@spec("matcher")
class MutualNearest:
    """Pairs of mutually most similar features; all other features stay unmatched.

    The cost is one product of both sides, or a sort of the candidates. The pairs are often right,
    but features that split, merge or have a near copy get no partner.
    """

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

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match by the scores of candidates; the first of equal scores is chosen."""
        rows, columns, scores = (part.numpy() for part in candidates.entries)
        mutual = largest_in_rows(rows, scores, 1)
        order = np.lexsort((rows, columns))
        mutual[order] &= largest_in_rows(columns[order], scores[order], 1)
        return valued_pairs(candidates.only(torch.from_numpy(mutual)))


@spec("matcher")
class Greedy:
    """The most similar pair, then the most similar pair of the remaining features, and so on.

    With candidates, a feature stays unmatched if other features take all of its candidates. The
    cost is one product of both sides and the rows that are scanned again, or a sort of the
    candidates. An early pair is never given up, so later pairs may be much worse than in the
    optimal match.
    """

    one_partner: ClassVar[bool] = True

    def __call__(self, factors: Factors) -> Match:
        """Return the match; every feature of the smaller side gets a partner."""
        swapped = len(factors.X_A) > len(factors.X_B)
        if swapped:
            return self(Factors(factors.X_B, factors.X_A)).inverse()
        return valued(torch.from_numpy(_greedy(factors)), factors)

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match by the scores of candidates; the first of equal scores is chosen."""
        rows, columns, scores = (part.numpy() for part in candidates.entries)
        order = np.argsort(-scores, kind="stable")
        free_row, free_column = [True] * candidates.n_source, [True] * candidates.n_target
        taken = np.zeros(len(order), bool)
        pairs = zip(order.tolist(), rows[order].tolist(), columns[order].tolist(), strict=True)
        for entry, row, column in pairs:
            if free_row[row] and free_column[column]:
                taken[entry], free_row[row], free_column[column] = True, False, False
        return valued_pairs(candidates.only(torch.from_numpy(taken)))


def _greedy(factors: Factors) -> Int64[np.ndarray, " n"]:
    """Return the column of each row, assigned in the order of similarity.

    A row's place in the queue is the value of its best candidate that was free at the last look. If
    a row has used up its list, its place is the last value of the list, which is an upper bound on
    its other columns. All such rows are scanned again together when the first one's turn comes.
    """
    plan = in_blocks(factors)
    products = Products(factors.X_A, factors.X_B, plan)
    free = np.ones(products.m, bool)
    candidates = Lists(products, plan.length, np.zeros(products.m))
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

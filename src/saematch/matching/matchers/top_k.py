"""The k best partners of each feature: a match of many to many."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.match import Match, largest_in_rows
from saematch.core.specs import AtLeast1, spec
from saematch.matching.matchers.nearest import in_blocks
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.products import Products


@spec("matcher")
class TopK:
    """The ``k`` target features of largest positive score of each source feature.

    The weights of a source feature's partners are in proportion to their scores and add up to 1. A
    feature without a positive score stays unmatched.
    """

    one_partner: ClassVar[bool] = False

    k: AtLeast1 = 20

    def __call__(self, factors: Factors) -> Match:
        """Return the match by the similarities of all pairs of features."""
        products = Products(factors.X_A, factors.X_B, in_blocks(factors))
        k = min(self.k, products.m)
        scores, columns = torch.empty(products.n, k), torch.empty(products.n, k, dtype=torch.int64)
        for block, similarity in products.blocks("top k"):
            scores[block], columns[block] = similarity.topk(k, dim=1)
        columns, order = columns.sort(dim=1)
        rows = torch.arange(products.n).repeat_interleave(k)
        scores = scores.gather(1, order).double().flatten()
        return _weighted(rows, columns.flatten(), scores, products.n, products.m)

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match by the scores of candidate pairs."""
        kept = largest_in_rows(candidates.rows.numpy(), candidates.scores.numpy(), self.k)
        chosen = torch.from_numpy(kept)
        return _weighted(
            candidates.rows[chosen], candidates.columns[chosen], candidates.scores[chosen],
            candidates.n_source, candidates.n_target,
        )  # fmt: skip


def _weighted(
    rows: Int64[Tensor, " n"],
    columns: Int64[Tensor, " n"],
    scores: Float[Tensor, " n"],
    n_source: int,
    n_target: int,
) -> Match:
    positive = scores > 0
    rows, columns, scores = rows[positive], columns[positive], scores[positive]
    totals = torch.zeros(n_source, dtype=torch.float64).index_add_(0, rows, scores)
    return Match(rows, columns, scores / totals[rows], n_source, n_target, scores=scores)

"""The k best partners of each feature: a match of many to many."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from saematch.core.match import Match, largest_in_rows
from saematch.core.specs import AtLeast1, spec
from saematch.matching.blocks import largest_of_rows
from saematch.matching.matchers.matcher import k_refusal, refuse_candidates, refuse_width
from saematch.matching.nonnegative import fit_largest
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors


@spec("matcher")
class TopK:
    """The ``k`` target features of largest positive score of each source feature.

    A feature without a positive score stays unmatched. A target may be the partner of any number of
    sources. The match is right for features that split or spread over several features; its weights
    spread each activation even where a single partner is enough. The cost is little more than a
    product of both sides, or a sort of the candidates.
    """

    one_partner: ClassVar[bool] = False
    needs_positive: ClassVar[bool] = True

    k: AtLeast1 = 20
    weights: Literal["score", "nnls"] = "score"
    """``score``: weights in proportion to the scores, which add up to 1. ``nnls``: the non-negative
    least-squares coefficients of the source's vector on the vectors of its ``k`` partners, without
    those that are 0. Candidates have no vectors, so ``nnls`` needs an objective that has."""

    def __call__(self, factors: Factors) -> Match:
        """Return the match by the similarities of all pairs of features."""
        n, m = len(factors.X_A), len(factors.X_B)
        refuse_width(self, m)
        largest = largest_of_rows(factors, self.k, "top k")
        weights = scores = largest.values.double()
        if self.weights == "nnls":
            weights = fit_largest(factors.X_A, factors.X_B, largest, self.k)
        columns, order = largest.columns.sort(dim=1)
        scores, weights = (part.gather(1, order).flatten() for part in (scores, weights))
        rows = torch.arange(n).repeat_interleave(self.k)
        return self._match(Candidates(rows, columns.flatten(), scores, n, m), weights)

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match by the scores of candidate pairs."""
        refuse_candidates(self)
        refuse_width(self, candidates.n_target)
        kept = largest_in_rows(candidates.rows.numpy(), candidates.scores.numpy(), self.k)
        entries = candidates.only(torch.from_numpy(kept))
        return self._match(entries, entries.scores)

    def width_refusal(self, n_target: int) -> str | None:
        """Return a reason for a target with fewer than ``k`` features, else None."""
        return k_refusal(self.k, n_target)

    def candidate_refusal(self) -> str | None:
        """Return why the weights cannot be computed from candidates; None if they can."""
        if self.weights == "score":
            return None
        return "matcher.weights=nnls fits vectors: set matcher.weights=score"

    def _match(self, entries: Candidates, weights: Float64[Tensor, " n"]) -> Match:
        """Return the match with the entries of positive score and weight."""
        positive = (entries.scores > 0) & (weights > 0)
        entries, weights = entries.only(positive), weights[positive]
        if self.weights == "score":
            totals = weights.new_zeros(entries.n_source).index_add_(0, entries.rows, weights)
            weights = weights / totals[entries.rows]
        return Match(
            entries.rows, entries.columns, weights, entries.n_source, entries.n_target,
            scores=entries.scores,
        )  # fmt: skip

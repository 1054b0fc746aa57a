"""Decoder vectors of one SAE as sums of a few decoder vectors of the other."""

from __future__ import annotations

import torch

from saematch.core.errors import InputError
from saematch.core.specs import AtLeast1, spec
from saematch.matching.blocks import largest_of_rows
from saematch.matching.nonnegative import fit_largest
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import different_sizes
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@spec("objective")
class SparseMap:
    """The coefficient of a source feature in a sparse non-negative sum near a target feature.

    The unit decoder vector ``e_j`` of each target feature is approximated by
    ``sum_i x_ij d_i`` with at most ``entries`` unit decoder vectors of the source, chosen among
    ``n_candidates`` of largest cosine by ``nonnegative_fit``. The score of a pair is ``x_ij > 0``;
    other pairs have none. So a target has at most ``entries`` scored sources, and a source any
    number of targets. With ``reverse`` the source's vectors are the sums: each source has at most
    ``entries`` scored targets.

    Scores are the same in every fold. ``reverse`` finds the children of a source feature that
    splits, where cosine fills the list with near copies of one child. The other direction finds
    the parts that merge into a target. Scores are wrong where a vector is near a sum of unrelated
    vectors by chance, which is more frequent in a wide SAE. The cost is one product of both sides,
    and the inner products of the candidates: ``n_candidates**2 / n_features`` of a product.
    """

    entries: AtLeast1 = 4
    """Largest number of vectors in a sum."""
    n_candidates: AtLeast1 = 64
    """Number of vectors of largest cosine that a sum chooses from."""
    reverse: bool = False
    """Whether the source's vectors are sums of the target's."""

    def __post_init__(self) -> None:
        if self.entries > self.n_candidates:
            raise InputError(
                f"objective.entries={self.entries} vectors cannot be chosen among "
                f"objective.n_candidates={self.n_candidates}"
            )

    def candidates_of(self, source: SaeParams, target: SaeParams) -> Candidates:
        """Return the pairs with a positive coefficient."""
        directions = DecoderCosine().factors(source, target)
        parts, sums = directions.X_A, directions.X_B
        if self.reverse:
            parts, sums = sums, parts
        n_candidates = min(self.n_candidates, len(parts))
        largest = largest_of_rows(Factors(sums, parts), n_candidates, "sparse map")
        coefficients = fit_largest(sums, parts, largest, self.entries)
        of_sum, entry = torch.nonzero(coefficients > 0, as_tuple=True)
        scores, of_part = coefficients[of_sum, entry], largest.columns[of_sum, entry]
        rows, columns = (of_sum, of_part) if self.reverse else (of_part, of_sum)
        order = torch.argsort(rows * target.n_features + columns)
        return Candidates(
            rows[order], columns[order], scores[order], source.n_features, target.n_features
        )

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return a reason for SAEs of different ``d_model``, else None."""
        return different_sizes(source, target)

"""The correlation of the activations of two features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from saematch.core.specs import spec
from saematch.matching.objectives.co_active import CoActive, Totals
from saematch.matching.objectives.from_activity import FromActivity
from saematch.sae.params import SaeParams

CONSTANT = 1e-12
"""Least variance of a feature, relative to its mean square: less is the rounding of a constant."""


@spec("objective")
class Pearson(FromActivity):
    """The Pearson correlation of two features' activations over all tokens, zeros included.

    It is right for features that fire together with the same relative strength. It is low for a
    feature and its parts. It is undefined, so there is no candidate, if a feature has the same
    activation on all tokens.
    """

    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return the covariance divided by both standard deviations."""
        n_tokens = pairs.source.n_tokens
        means = pairs.source.sums[pairs.rows] / n_tokens
        covariance = pairs.sums - means * pairs.target.sums[pairs.columns]
        deviations = _deviations(pairs.source)[pairs.rows]
        deviations *= _deviations(pairs.target)[pairs.columns]
        scores = np.full(len(covariance), -np.inf)
        return np.divide(covariance, deviations, out=scores, where=deviations > 0)


def _deviations(totals: Totals) -> Float64[np.ndarray, " n_features"]:
    """Return the root of each feature's summed squared deviations from its mean; 0 if constant."""
    squares = totals.squares - totals.sums**2 / totals.n_tokens
    return np.sqrt(np.where(squares > CONSTANT * totals.squares, squares, 0.0))

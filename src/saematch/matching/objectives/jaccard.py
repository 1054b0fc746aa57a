"""The Jaccard index of the tokens on which two features are active."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from saematch.core.specs import spec
from saematch.matching.objectives.co_active import CoActive
from saematch.matching.objectives.from_activity import FromActivity
from saematch.sae.params import SaeParams


@spec("objective")
class Jaccard(FromActivity):
    """The share of the tokens with either feature active on which both are active.

    It is right for features that fire on the same tokens, however strongly. It is low for a feature
    and its parts, where one is active more often than the other.
    """

    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return ``n_both / (n_source + n_target - n_both)``."""
        of_source = pairs.source.n_active[pairs.rows]
        of_target = pairs.target.n_active[pairs.columns]
        return pairs.n_both / (of_source + of_target - pairs.n_both)

"""The necessity of a source feature for a target feature."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from saematch.core.specs import AtLeast1, spec
from saematch.matching.objectives.co_active import CoActive
from saematch.matching.objectives.from_activity import FromActivity
from saematch.sae.params import SaeParams


@spec("objective")
class Necessity(FromActivity):
    """``P(source active | target active)``: how often the source is active when the target is.

    It finds the special features that a general source feature splits into. But the best source
    features by necessity are often those that are active on most tokens.

    The floor is 2, since a target that was active on one token alone would have the score 1 with
    every source feature that is active on that token.
    """

    floor: AtLeast1 = 2

    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return ``n_both / n_target``."""
        return pairs.n_both / pairs.target.n_active[pairs.columns]

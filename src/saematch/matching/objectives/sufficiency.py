"""The sufficiency of a source feature for a target feature."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from saematch.core.specs import AtLeast1, spec
from saematch.matching.objectives.co_active import CoActive
from saematch.matching.objectives.from_activity import FromActivity
from saematch.sae.params import SaeParams


@spec("objective")
class Sufficiency(FromActivity):
    """``P(target active | source active)``: how often the target is active when the source is.

    It finds the general feature that a special source feature becomes part of. But targets that are
    active on most tokens have a high sufficiency with every source feature.

    The floor is 2, since a source feature that was active on one token alone would have the score 1
    with every target that is active on that token.
    """

    floor: AtLeast1 = 2

    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return ``n_both / n_source``."""
        return pairs.n_both / pairs.source.n_active[pairs.rows]

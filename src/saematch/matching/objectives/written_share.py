"""The written share: the part of a target feature's activation that a source feature writes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from saematch.core.specs import spec
from saematch.matching.objectives.co_active import CoActive
from saematch.matching.objectives.from_activity import FromActivity
from saematch.matching.objectives.read_write import writing_refusal
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@spec("objective")
class WrittenShare(FromActivity):
    """The mean share of the target's activation that the source feature writes directly.

    ``score(i, j)`` is the mean over the tokens on which ``i`` is active of
    ``f_i (d_i . w_enc_j) / z_j`` where ``j`` is active, and 0 elsewhere. ``f`` and ``z`` are the
    activations of source and target, ``d_i`` is a decoder vector and ``w_enc_j`` an encoder vector.
    This definition is our own. The score is the same in every fold.

    It is right where the target reads what the source writes, also if the source is a small part of
    the target. It ignores what the layers in between compute from the source. Its additional cost
    is the product of all decoder and encoder vectors, as much as encoding ``n_source / 2`` tokens
    by both SAEs.
    """

    divide: ClassVar[bool] = True

    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return ``d_i . w_enc_j`` times the mean of ``f_i / z_j``."""
        decoder = source.W_dec[torch.from_numpy(pairs.features)].float()
        written = (decoder @ target.W_enc.float()).numpy()[pairs.places, pairs.columns]
        return written * (pairs.sums / pairs.source.n_active[pairs.rows])

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Refuse SAEs of different sizes or language models, and targets before their source."""
        return writing_refusal("written share", source, target)

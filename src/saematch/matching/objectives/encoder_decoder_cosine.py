"""The mean of the cosines of encoder and decoder vectors."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saematch.core.specs import spec
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import different_sizes, pair_name
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@spec("objective")
class EncoderDecoderCosine:
    """The mean of the cosine of two decoder vectors and the cosine of two encoder vectors.

    It is the same in every fold. Two features are alike if they read and write the same directions.
    It is right for a feature that carries on unchanged, and wrong where a block in between changes
    the direction that the target reads. Memory: ``2 d_model`` float32 numbers for each feature.
    """

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the joined unit vectors of both SAEs over the square root of 2, in float32."""
        return Factors(_joined(source), _joined(target), pair_name(source, target))

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return a reason for SAEs of different ``d_model``, else None."""
        return different_sizes(source, target)


def _joined(sae: SaeParams) -> Float[Tensor, "n_features size"]:
    parts = [normalize(part.float(), dim=1) for part in (sae.W_dec, sae.W_enc.T)]
    return torch.cat(parts, dim=1).mul_(math.sqrt(0.5))

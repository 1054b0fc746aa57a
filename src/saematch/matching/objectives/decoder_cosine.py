"""The cosine of decoder vectors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saematch.core.specs import spec
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import different_sizes, pair_name
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@spec("objective")
class DecoderCosine:
    """The cosine of two decoder vectors; it is the same in every fold.

    Two features are alike if they write the same direction. The cosine is right where a feature
    carries on unchanged, and wrong where a block in between rotates the hidden state.
    """

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the unit decoder vectors of both SAEs in float32."""
        return Factors(_directions(source), _directions(target), pair_name(source, target))

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return a reason for SAEs of different ``d_model``, else None."""
        return different_sizes(source, target)


def _directions(sae: SaeParams) -> Float[Tensor, "n_features d_model"]:
    return normalize(sae.W_dec.float(), dim=1)

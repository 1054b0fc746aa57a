"""The paper's objective: the squared error of encoder and decoder vectors."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.specs import spec
from saematch.matching.objectives.factors import Factors, by_distance
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.suites import SaeFacts


@spec("objective")
class Parts:
    """The paper's objective (eq. 3): the squared error of the chosen parts of two features.

    ``sum_i ||v_A[i] - v_B[P(i)]||^2``, where ``v`` joins decoder vector, encoder vector and encoder
    bias, each times the square root of its weight. In the paper's sum all weights are 1; weight 0
    leaves a part out.

    For layers of equal width the similarity of two features is ``<v_A[i], v_B[j]>``, since every
    permutation has the same sum of norms. For different widths the sum depends on the match, since
    some features of the wider layer have no partner. The similarity is then
    ``-||v_A[i] - v_B[j]||^2 / 2``, and the value of a match is minus half of its squared error.
    """

    W_dec: float = 1.0
    W_enc: float = 1.0
    b_enc: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.W_dec, self.W_enc, self.b_enc)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise InputError(
                f"weights of the parts are W_dec={self.W_dec}, W_enc={self.W_enc}, "
                f"b_enc={self.b_enc}; they must be finite, not negative and not all zero"
            )

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the vectors of both SAEs in float32; for different widths, use ``by_distance``."""
        name = pair_name(source, target)
        factors = Factors(self._vectors(source), self._vectors(target), name)
        return factors if source.n_features == target.n_features else by_distance(factors)

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return a reason for SAEs of different ``d_model``, else None."""
        return different_sizes(source, target)

    def _vectors(self, sae: SaeParams) -> Float[Tensor, "n_features size"]:
        parts = (
            (self.W_dec, sae.W_dec),
            (self.W_enc, sae.W_enc.T),
            (self.b_enc, sae.b_enc[:, None]),
        )
        return torch.cat([math.sqrt(w) * part.float() for w, part in parts if w > 0], dim=1)


def different_sizes(source: SaeFacts, target: SaeFacts) -> str | None:
    """Return why SAEs of different ``d_model`` cannot be matched by weights; None if equal."""
    if source.d_model == target.d_model:
        return None
    return (
        f"the SAEs have different d_model (source: {source.d_model}, target: "
        f"{target.d_model}), so they cannot be matched by weights"
    )


def pair_name(source: SaeParams, target: SaeParams) -> str:
    """Return a name of two SAEs for ``Factors.pair``."""
    return f"{_name(source.origin)} -> {_name(target.origin)}"


def _name(origin: SaeOrigin) -> str:
    """Return a name of the SAE that is the same on every machine, so without its folder."""
    return f"layer {origin.layer} {origin.site} {origin.sae_id} {origin.revision}"

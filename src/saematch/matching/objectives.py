"""Objectives: what two features are compared by, as a pair of factor matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.sae.params import SaeParams


@dataclass(frozen=True)
class Factors:
    """One vector a feature and side; the similarity of a pair is their inner product.

    Raises ``ValueError`` for vectors of two sizes and for values that are not finite.
    """

    X_A: Float[Tensor, "n_from size_A"]
    """Vectors of the earlier layer's features."""
    X_B: Float[Tensor, "n_to size_B"]
    """Vectors of the later layer's features."""

    def __post_init__(self) -> None:
        if self.X_A.shape[1] != self.X_B.shape[1]:
            raise ValueError(
                f"the two sides have vectors of {self.X_A.shape[1]} and {self.X_B.shape[1]} "
                "numbers; SAEs can be compared by weights only where d_model is the same"
            )
        for name, side in (("earlier", self.X_A), ("later", self.X_B)):
            if not torch.isfinite(side).all():
                raise ValueError(f"vectors of the {name} layer hold NaN or infinite values")


@dataclass(frozen=True)
class Parts:
    """The paper's objective (eq. 3): the squared error of the chosen parts of two features.

    ``sum_i ||v_A[i] - v_B[P(i)]||^2``, where ``v`` joins decoder vector, encoder vector and encoder
    bias, each times the square root of its weight. Over a permutation the norms are constant, so
    this is the assignment of the largest ``sum_i <v_A[i], v_B[P(i)]>``. The paper's plain sum has
    all weights 1; weight 0 leaves a part out.
    """

    W_dec: float = 1.0
    W_enc: float = 1.0
    b_enc: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.W_dec, self.W_enc, self.b_enc)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise ValueError(
                f"weights of the parts are W_dec={self.W_dec}, W_enc={self.W_enc}, "
                f"b_enc={self.b_enc}; they must be finite, not negative and not all zero"
            )

    def factors(self, earlier: SaeParams, later: SaeParams) -> Factors:
        """Return the vectors of both SAEs, in float32."""
        return Factors(self._vectors(earlier), self._vectors(later))

    def _vectors(self, sae: SaeParams) -> Float[Tensor, "n_features size"]:
        parts = (
            (self.W_dec, sae.W_dec),
            (self.W_enc, sae.W_enc.T),
            (self.b_enc, sae.b_enc[:, None]),
        )
        return torch.cat([math.sqrt(w) * part.float() for w, part in parts if w > 0], dim=1)

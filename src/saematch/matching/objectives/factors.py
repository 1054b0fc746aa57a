"""Factor matrices: one vector for each feature of both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.errors import InputError
from saematch.matching.centring import common_centre, lengths, typical_length


@dataclass(frozen=True)
class Factors:
    """One vector for each feature; the similarity of a pair is the inner product.

    Raises ``InputError`` for vectors of different sizes and for values that are not finite.
    """

    X_A: Float[Tensor, "n_source D_A"]
    """Vectors of the source's features."""
    X_B: Float[Tensor, "n_target D_B"]
    """Vectors of the target's features."""
    pair: str = ""
    """Names of both SAEs, which determine the permutation of ``Random``; others ignore them."""
    norm_columns: int = 0
    """Number of columns at the end that are norms and not coordinates (``by_distance``)."""

    def __post_init__(self) -> None:
        if self.X_A.shape[1] != self.X_B.shape[1]:
            raise InputError(
                f"the two sides have vectors of {self.X_A.shape[1]} and {self.X_B.shape[1]} "
                "numbers; SAEs can be compared by weights only where d_model is the same"
            )
        for name, side in (("source", self.X_A), ("target", self.X_B)):
            if not torch.isfinite(side).all():
                raise InputError(f"vectors of the {name} layer hold NaN or infinite values")


def by_distance(factors: Factors) -> Factors:
    """Return factors whose similarities are minus half of the squared distances.

    For vectors ``a`` and ``b``, after subtraction of a common centre, these are the inner products
    of ``[a, -||a||^2 / 2t, t]`` and ``[b, t, -||b||^2 / 2t]``. The centre cancels; without it,
    float32 would lose small distances between long vectors. ``t`` cancels too. It is about the
    length of a vector, which keeps the vectors short and the bounds on rounding tight. The vectors
    are float64, since rounding a norm to float32 could exceed small distances.
    """
    centre = common_centre(factors.X_A, factors.X_B)
    a, b = (side.double() - centre for side in (factors.X_A, factors.X_B))
    of_a, of_b = lengths(a), lengths(b)
    longest = float(torch.cat([of_a, of_b]).max())
    t = max(typical_length(of_a, of_b) / math.sqrt(2), longest / 100)

    def extended(side: Tensor, *columns: Tensor) -> Tensor:
        return torch.cat([side, torch.stack(columns, 1).to(side)], 1)

    def half_square(of_side: Tensor) -> Tensor:
        return -of_side.square() / (2 * t)

    X_A = extended(a, half_square(of_a), torch.full_like(of_a, t))
    X_B = extended(b, torch.full_like(of_b, t), half_square(of_b))
    return Factors(X_A, X_B, factors.pair, norm_columns=2)

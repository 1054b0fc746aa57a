"""``ChanceLevel``: the similarity that a pair of a partial match must exceed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.specs import Seed, spec
from saematch.matching.objectives.factors import Factors

SHRINKAGE = 0.5
"""Weight of the diagonal in the covariance by which vectors are whitened."""
SAMPLED = 2048
"""Largest number of features of each side whose best cosines are computed."""
ROTATIONS, ROTATIONS_OF_MANY = 20, 3
"""Numbers of rotations: if both sides have at most ``SAMPLED`` features, and otherwise."""
SAME = 1e-5
"""Difference below which cosines are equal up to the rounding of float32."""
ROUNDING = 1e-6
"""Length below which the difference of two vectors of length 1 is the rounding of float32."""
OUT_OF_REACH = 2.0
"""Level if no feature is significant; it is larger than any cosine."""
NUMBERS_AT_ONCE = 1 << 22
"""Number of cosines that are computed together."""


@dataclass(frozen=True)
class Compared:
    """Vectors and level of a partial match."""

    directions: Factors
    """Vectors of length 1, or 0 where a feature has no direction; inner products are cosines."""
    level: float
    """Cosine that a pair must exceed; ``OUT_OF_REACH`` if no feature is significant."""


@spec("matcher.unmatched")
class ChanceLevel:
    """A cosine that features without a counterpart rarely reach (``docs/partial.md``).

    Features are compared by their directions: each vector is scaled to length 1, each side is
    centred by its own mean, and both are whitened by their joint covariance. A feature is
    significant if its best cosine is larger than two null distributions allow:

    - *rotated*: the feature's best cosine after a rotation of the target's vectors within their own
      covariance. Mean, covariance and lengths stay; everything else that the layers share is gone.
    - *within*: the best cosine of a feature of one layer to the **other** features of that layer.
      Features that only belong to the same cluster are not more similar than that.

    Features of both sides are tested, each side at half of ``share``, by Benjamini and Hochberg's
    procedure on pooled null values. The level is the largest of the four thresholds. If two layers
    share only a mean and a covariance, the mean share of features above the level is therefore at
    most ``share``.
    """

    share: float = 0.05
    """Share of false pairs among those above the level, between 0 and 1."""
    seed: Seed = 0
    """Seed of the rotations."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(
                f"matcher.unmatched.share={self.share}: give a number between 0 and 1, such as "
                "0.05; for a partner for every feature use matcher=optimal"
            )

    def __call__(self, factors: Factors) -> Compared:
        """Return the directions of two layers and their level."""
        source, target = directions(factors)
        samples = _sample(source), _sample(target)
        best = _best(samples[0], target), _best(samples[1], source)
        within = _best(samples[1], target, other=True), _best(samples[0], source, other=True)
        rotated = self._rotated_best(source, target)
        levels = [
            _threshold(best[side], null[side], self.share / 2, unseen)
            for null, unseen in ((within, 0), (rotated, 1))
            for side in (0, 1)
        ]
        return Compared(Factors(source, target), max(SAME, *levels))

    def _rotated_best(
        self, source: Float[Tensor, "n size"], target: Float[Tensor, "m size"]
    ) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " l"]]:
        """Return the best cosines of both sides' features, pooled over rotations of the target."""
        many = max(len(source), len(target)) > SAMPLED
        count = ROTATIONS_OF_MANY if many else ROTATIONS
        generator = torch.Generator().manual_seed(self.seed)
        source_best, target_best = [], []
        for vectors in _rotations(target, count, generator):
            source_best.append(_best(_sample(source), vectors))
            target_best.append(_best(_sample(vectors), source))
        return np.concatenate(source_best), np.concatenate(target_best)


def directions(factors: Factors) -> tuple[Float[Tensor, "n size"], Float[Tensor, "m size"]]:
    """Return the whitened directions of both sides, in float32.

    Vectors are first scaled to length 1; otherwise a few long ones would determine mean and
    covariance. The covariance is that of both sides together, each centred by its own mean, in
    units of each coordinate's standard deviation. It is shrunk halfway to its diagonal
    (``SHRINKAGE``), so that it has an inverse for any number of features. A coordinate that does
    not vary is left out.
    """
    size = factors.X_A.shape[1] - factors.norm_columns
    sides = [_unit(side[:, :size].float()) for side in (factors.X_A, factors.X_B)]
    # A zero vector has no direction: it does not count in the mean, and it stays zero
    live = [(side != 0).any(1, keepdim=True).float() for side in sides]
    sides = [
        _without_rounding((side - side.sum(0) / mask.sum().clamp(min=1)) * mask)
        for side, mask in zip(sides, live, strict=True)
    ]
    count = sum(float(mask.sum()) for mask in live) or 1.0
    source, target = sides
    spread = ((source.square().sum(0) + target.square().sum(0)) / count).sqrt()
    scale = torch.where(spread > SAME * spread.max(), 1 / spread, 0.0)
    sides = source, target = [source * scale, target * scale]
    correlation = (source.T @ source + target.T @ target) / count
    correlation *= 1 - SHRINKAGE
    correlation.diagonal().add_(SHRINKAGE)
    root = torch.linalg.cholesky(correlation)
    source, target = (
        _unit(torch.linalg.solve_triangular(root, side.T, upper=False).T.contiguous())
        for side in sides
    )
    return source, target


def _without_rounding(centred: Float[Tensor, "n size"]) -> Float[Tensor, "n size"]:
    """Set vectors to 0 that are the rounding of a vector of length 1 minus an equal mean."""
    lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return torch.where(lengths > ROUNDING, centred, 0.0)


def _unit(vectors: Float[Tensor, "n size"]) -> Float[Tensor, "n size"]:
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / lengths, 0.0)


def _sample(side: Float[Tensor, "n size"]) -> Float[Tensor, "k size"]:
    """Return at most ``SAMPLED`` rows at even distances."""
    return side[torch.linspace(0, len(side) - 1, min(len(side), SAMPLED)).long().to(side.device)]


def _best(
    vectors: Float[Tensor, "k size"], side: Float[Tensor, "m size"], other: bool = False
) -> Float64[np.ndarray, " k"]:
    """Return the best cosine of each vector to the vectors of a side.

    With ``other``, equal vectors are excluded: the vector itself and its copies.
    """
    best = []
    for rows in vectors.split(max(1, NUMBERS_AT_ONCE // len(side))):
        cosines = rows @ side.T
        if other:
            cosines[cosines > 1 - SAME] = -1.0
        best.append(cosines.amax(1))
    return torch.cat(best).double().cpu().numpy()


def _rotations(
    side: Float[Tensor, "m size"], count: int, generator: torch.Generator
) -> Iterator[Float[Tensor, "m size"]]:
    """Yield directions of the side after random rotations within its own covariance.

    With the thin singular value decomposition ``U S V'`` of the centred vectors, a rotation is
    ``U Q S V'`` with ``Q`` uniform among the orthogonal matrices of the covariance's rank. For
    Gaussian vectors that is another draw from the same distribution, given the covariance.
    """
    centred = side - side.mean(0)
    white, scale, axes = _decomposed(centred)
    rank = len(scale)
    for _ in range(count):
        gaussian = torch.randn(rank, rank, generator=generator).to(side.device)
        q, r = torch.linalg.qr(gaussian)
        q = q * r.diagonal().sign()  # uniform: the decomposition's own signs are not
        yield _unit(white @ ((q * scale) @ axes))


def _decomposed(
    centred: Float[Tensor, "m size"],
) -> tuple[Float[Tensor, "m rank"], Float[Tensor, " rank"], Float[Tensor, "rank size"]]:
    """Return the factors of a thin singular value decomposition, over its rank alone."""
    wide = len(centred) < centred.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    keep = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    scale, vectors = values[keep].sqrt(), vectors[:, keep]
    if wide:
        return vectors, scale, (centred.T @ vectors / scale).T
    return centred @ vectors / scale, scale, vectors.T


def _threshold(
    best: Float64[np.ndarray, " n"], null: Float64[np.ndarray, " k"], share: float, unseen: int
) -> float:
    """Return the lowest cosine above which at most ``share`` of the features are false.

    Benjamini and Hochberg's procedure with empirical p-values ``(unseen + #{null > c}) / (unseen +
    k)``: the more features exceed a cosine, the more null values may exceed it. ``unseen=1`` counts
    the feature itself as a draw of the null, so that p-values are valid for any number of draws.
    Returns ``OUT_OF_REACH`` if no feature is significant.
    """
    best, null = -np.sort(-best), -np.sort(-null)
    ranks = np.arange(1, len(best) + 1) / len(best)
    may_exceed = np.floor(share * ranks * (len(null) + unseen) + SAME).astype(int) - unseen
    cosine = np.where(may_exceed < 0, math.inf, null[np.maximum(may_exceed, 0)]) + SAME
    significant = np.flatnonzero(best > cosine)
    return float(cosine[significant[-1]]) if len(significant) else OUT_OF_REACH

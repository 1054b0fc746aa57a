"""Pairs of layers with a known match, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.matching.objectives.factors import Factors


@dataclass(frozen=True)
class Planted:
    """Vectors of two layers, and which features persist."""

    factors: Factors
    columns: Int64[Tensor, " n"]
    """Counterpart of each source feature in the target; -1 for none."""


def planted(
    n: int,
    size: int,
    *,
    persist: float = 0.7,
    cosine: tuple[float, float] = (0.3, 0.95),
    spread: float = 0.3,
    seed: int = 0,
) -> Planted:
    """Return two layers of ``n`` features; some features persist with changes.

    Directions are isotropic Gaussian. A feature persists with probability ``persist``, at a cosine
    drawn uniformly from ``cosine``. The norms of each side are log-normal; the logarithm has the
    standard deviation ``spread``. The target's order is shuffled. With ``persist=0`` nothing is
    shared.
    """
    generator = torch.Generator().manual_seed(seed)

    def vectors() -> Float[Tensor, "n size"]:
        return torch.randn(n, size, generator=generator).div_(size**0.5)

    def norms() -> Float[Tensor, "n 1"]:
        return torch.exp(spread * torch.randn(n, 1, generator=generator))

    low, high = cosine
    rho = low + (high - low) * torch.rand(n, 1, generator=generator)
    persists = torch.rand(n, 1, generator=generator) < persist
    rho *= persists
    positions = torch.randperm(n, generator=generator)
    source, target = vectors(), vectors()
    target.mul_((1 - rho**2).sqrt()).addcmul_(source, rho).mul_(norms())
    source.mul_(norms())
    shuffled = torch.empty_like(target).index_copy_(0, positions, target)
    return Planted(Factors(source, shuffled), torch.where(persists.flatten(), positions, -1))

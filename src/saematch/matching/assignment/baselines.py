"""Matches that look at no weights: what any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saematch.matching.match import Match
from saematch.matching.objectives import Factors


@dataclass(frozen=True)
class Identity:
    """Feature ``i`` is feature ``i`` (the paper's "vanilla"); chance, unless SAEs share a start."""

    def __call__(self, factors: Factors) -> Match:
        """Return the baseline; of the factors only their number matters."""
        n_from, n_to = len(factors.X_A), len(factors.X_B)
        columns = torch.arange(n_from)
        return Match.from_columns(torch.where(columns < n_to, columns, -1), n_to)


@dataclass(frozen=True)
class Random:
    """A permutation drawn at random."""

    seed: int = 0

    def __call__(self, factors: Factors) -> Match:
        """Return the baseline; of the factors only their number matters."""
        n_from, n_to = len(factors.X_A), len(factors.X_B)
        generator = torch.Generator().manual_seed(self.seed)
        columns = torch.randperm(max(n_from, n_to), generator=generator)[:n_from]
        return Match.from_columns(torch.where(columns < n_to, columns, -1), n_to)

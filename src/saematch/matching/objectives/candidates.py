"""Candidate pairs of features with scores: the similarity of objectives without vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from saematch.core.match import largest_in_rows


@dataclass(frozen=True)
class Candidates:
    """Scored pairs of features, at most one entry for a pair; all other pairs are unknown.

    Entries are sorted by source feature, then target feature.
    """

    rows: Int64[Tensor, " n"]
    """Source feature of each entry."""
    columns: Int64[Tensor, " n"]
    """Target feature of each entry."""
    scores: Float64[Tensor, " n"]
    n_source: int
    n_target: int

    @property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and scores."""
        return self.rows, self.columns, self.scores

    def only(self, chosen: Bool[Tensor, " n"]) -> Candidates:
        """Return the chosen entries."""
        rows, columns, scores = (part[chosen] for part in self.entries)
        return Candidates(rows, columns, scores, self.n_source, self.n_target)


@dataclass(frozen=True)
class PairSums:
    """Sums over tokens of a value of two features, for the pairs of features that occurred."""

    keys: Int64[Tensor, " n"]
    """``source * n_target + target`` of each pair, in order."""
    sums: Float64[Tensor, " n"]
    n_target: int

    @classmethod
    def of(cls, keys: Int64[Tensor, " n"], values: Tensor, n_target: int) -> PairSums:
        """Add up the values of equal keys."""
        keys, numbers = keys.unique(return_inverse=True)
        sums = torch.zeros(len(keys), dtype=torch.float64, device=keys.device)
        return cls(keys, sums.index_add_(0, numbers, values.double()), n_target)

    def plus(self, other: PairSums) -> PairSums:
        """Return the sums over the tokens of both."""
        keys = torch.cat([self.keys, other.keys])
        return PairSums.of(keys, torch.cat([self.sums, other.sums]), self.n_target)

    def largest(self, most: int) -> PairSums:
        """Return the pairs with the ``most`` largest sums of each source feature."""
        rows = (self.keys // self.n_target).cpu().numpy()
        kept = torch.from_numpy(largest_in_rows(rows, self.sums.cpu().numpy(), most))
        kept = kept.to(self.keys.device)
        return PairSums(self.keys[kept], self.sums[kept], self.n_target)

"""Candidate pairs of features with scores: the similarity of objectives without vectors."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float64, Int64
from torch import Tensor


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

"""Candidate pairs of features with scores: the similarity of objectives that read activity."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float64, Int64
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

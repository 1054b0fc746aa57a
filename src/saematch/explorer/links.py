"""The entries of a match, sorted so that a page can look up a feature's partners and sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from saematch.core.match import Match
from saematch.evaluate.effects import NONE

N_PARTNERS = 8
"""Largest number of partners of a source feature on a page."""
N_SOURCES = 2
"""Largest number of sources of a target feature on a page."""


@dataclass(frozen=True)
class Links:
    """Best entries of each feature of one side, sorted by feature and rank."""

    starts: Int64[np.ndarray, " n_plus_1"]
    """Number of the first entry of each feature; the last number is that of all entries."""
    others: Int64[np.ndarray, " n_links"]
    """Feature on the other side of each entry."""
    weights: Float64[np.ndarray, " n_links"]
    scores: Float64[np.ndarray, " n_links"] | None
    """None if the match has no scores."""

    @property
    def best(self) -> Int64[np.ndarray, " n"]:
        """Best entry's other feature, for each feature; ``NONE`` without entries."""
        best = np.full(len(self.starts) - 1, NONE, np.int64)
        linked = np.diff(self.starts) > 0
        best[linked] = self.others[self.starts[:-1][linked]]
        return best


def partners(match: Match, most: int = N_PARTNERS) -> Links:
    """Return the best partners of each source feature.

    The order is that of ``ranked_partners``: descending absolute weight, then ascending target.
    """
    return _links(match.rows.numpy(), match.columns.numpy(), match.n_source, match, most)


def sources(match: Match, most: int = N_SOURCES) -> Links:
    """Return the best sources of each target feature, in the same order as ``partners``."""
    return _links(match.columns.numpy(), match.rows.numpy(), match.n_target, match, most)


def _links(features: np.ndarray, others: np.ndarray, n: int, match: Match, most: int) -> Links:
    weights = match.weights.numpy()
    scores = None if match.scores is None else match.scores.numpy()
    order = np.lexsort((others, -np.abs(weights), features))
    rank = np.arange(len(order)) - np.searchsorted(features[order], features[order])
    order = order[rank < most]
    starts = np.searchsorted(features[order], np.arange(n + 1))
    return Links(starts, others[order], weights[order], None if scores is None else scores[order])

"""The optimal one-to-one match of a list of candidate pairs, by SciPy's sparse solver."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from torch import Tensor

from saematch.core.errors import InputError
from saematch.matching.objectives.candidates import Candidates


def best_pairs(candidates: Candidates, level: float | None) -> Bool[Tensor, " n"]:
    """Return which candidates are in the one-to-one match of the largest total score.

    Without a level, every feature of the smaller side must have a partner; raises ``InputError`` if
    the candidates allow no such match. With a level, the match maximises the sum of the scores
    minus the level. The match is exact to the rounding of float64.
    """
    rows, columns, scores = (part.numpy() for part in candidates.entries)
    n, m = candidates.n_source, candidates.n_target
    swapped = n > m
    if swapped:
        rows, columns, n, m = columns, rows, m, n
    entries = np.arange(len(scores))
    if level is None:
        _check_full(rows, columns, (n, m), "target" if swapped else "source")
        gains = scores
    else:
        entries = np.flatnonzero(scores > level)
        # Each row may have a column of its own instead, at the level
        rows = np.concatenate([rows[entries], np.arange(n)])
        columns = np.concatenate([columns[entries], m + np.arange(n)])
        gains = np.concatenate([scores[entries] - level, np.zeros(n)])
        m += n
    costs = gains.max() - gains
    costs += costs.max() or 1.0  # the solver takes a cost of 0 for no entry
    graph = csr_array((costs, (rows, columns)), shape=(n, m))
    pairs = np.stack(min_weight_full_bipartite_matching(graph))
    matched = np.isin(rows * m + columns, pairs[0].astype(np.int64) * m + pairs[1])
    chosen = np.zeros(len(scores), bool)
    chosen[entries] = matched[: len(entries)]
    return torch.from_numpy(chosen)


def _check_full(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], side: str) -> None:
    """Raise ``InputError`` unless all rows can have a column at the same time."""
    graph = csr_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)
    size = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    if size == shape[0]:
        return
    alone = shape[0] - len(np.unique(rows))
    reason = f"{alone} have no candidate" if alone else f"at most {size} can have one together"
    raise InputError(
        f"not all of the {shape[0]} {side} features can have a partner among their candidates "
        f"({reason}): set matcher.unmatched=0.0 to leave features unmatched, or raise the "
        "objective's n_candidates"
    )

"""Transport: carry activations through a match."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.match import Match
from saematch.sae.activations import SparseFeatures


class Crossings(NamedTuple):
    """Entries of the match for a list of source features, one item for each entry."""

    starts: Int64[Tensor, " n_list_plus_1"]
    """Start of each list item's crossings, and at the end their number."""
    origins: Int64[Tensor, " n"]
    """Position of the source feature in the list."""
    entries: Int64[Tensor, " n"]
    """Number of the match's entry."""


def crossings(match: Match, features: Int64[Tensor, " n_list"]) -> Crossings:
    """Return the entries of each listed source feature, in the order of the list."""
    device = features.device
    if match.one_partner and len(match.rows) == match.n_source:  # a faster way to the same result
        positions = torch.arange(len(features) + 1, device=device)
        return Crossings(positions, positions[:-1], features)
    counts = torch.bincount(match.rows, minlength=match.n_source)
    first = (counts.cumsum(0) - counts).to(device)
    sizes = counts.to(device)[features]
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    origins = torch.repeat_interleave(sizes)
    within = torch.arange(len(origins), device=device) - starts[origins]
    return Crossings(starts, origins, first[features][origins] + within)


def transport(
    active: SparseFeatures,
    match: Match,
    source_scale: Float[Tensor, " n_source"],
    target_scale: Float[Tensor, " n_target"],
) -> SparseFeatures:
    """Return activations of the source as features of the target (``P f_t``, eq. 5).

    ``f_target[j] = target_scale[j] * sum_i w_ij f_source[i] / source_scale[i]``: activations are
    transported in the gauge of a fold. The result has an item for each entry of an active feature;
    items of one target feature add up. Features without an entry are lost.
    """
    crossed = crossings(match, active.features)
    rows, columns = match.rows.to(source_scale.device), match.columns.to(source_scale.device)
    gain = target_scale[columns] / source_scale[rows]
    gain = gain * match.weights.to(gain)
    return SparseFeatures(
        crossed.starts[active.starts],
        columns[crossed.entries],
        active.values[crossed.origins] * gain[crossed.entries],
        match.n_target,
    )

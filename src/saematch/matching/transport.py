"""Transport: carry activations through a match."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.match import Match
from saematch.sae.activations import SparseFeatures


def carry(
    active: SparseFeatures,
    match: Match,
    source_scale: Float[Tensor, " n_source"],
    target_scale: Float[Tensor, " n_target"],
) -> SparseFeatures:
    """Return activations of the source as features of the target (``P f_t``, eq. 5).

    They go over in the gauge of a fold: divided by the source feature's scale on leaving and
    multiplied by the target feature's on arrival. Features without a partner are lost.
    """
    partners = match.partners().to(active.features.device)
    gain = torch.where(partners >= 0, target_scale[partners.clamp(min=0)] / source_scale, 0.0)
    columns = partners[active.features]
    kept = replace(
        active, features=columns.clamp(min=0), values=active.values * gain[active.features]
    )
    return replace(kept, n_features=match.n_target)

"""Folding: move a positive scale of each feature from its activation to its decoder vector."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.errors import InputError
from saematch.sae.params import SaeParams, check_sae

FOLDS = ("threshold", "decoder_norm", "none")


def fold(sae: SaeParams, by: str) -> SaeParams:
    """Return the SAE in another gauge; it reconstructs the same hidden states.

    ``threshold``     the paper's folding (eq. 4): every threshold becomes 1. If thresholds are
                      missing or not all positive, the SAE's stand-in takes their place
    ``decoder_norm``  the gauge of the unfolded matching: every decoder vector has norm 1
    ``none``          the SAE as it was trained; decoder vectors keep their norms

    Raises ``InputError`` for an unknown name, and for ``threshold`` if the SAE has neither
    positive thresholds nor a stand-in.
    """
    check_sae(sae, "the SAE to fold")
    return sae if by == "none" else rescale(sae, fold_scale(sae, by))


def fold_scale(sae: SaeParams, by: str) -> Float[Tensor, " n_features"]:
    """Return the positive factor by which the fold divides each feature's activation.

    ``decoder_norm`` leaves a feature unchanged if its decoder vector has norm 0.
    """
    if by == "none":
        return torch.ones_like(sae.b_enc)
    if by == "decoder_norm":
        norm = torch.linalg.vector_norm(sae.W_dec, dim=1)
        return torch.where(norm > 0, 1.0 / norm, 1.0)
    if by != "threshold":
        raise InputError(f"unknown fold {by!r}: choose one of {', '.join(FOLDS)}")
    scale = _threshold_scale(sae)
    if scale is None:
        raise InputError(_no_scale(sae))
    return scale


def _threshold_scale(sae: SaeParams) -> Float[Tensor, " n_features"] | None:
    positive = sae.threshold is not None and bool((sae.threshold > 0).all())
    return sae.threshold if positive else sae.stand_in


def _no_scale(sae: SaeParams) -> str:
    where = f"SAE {sae.origin.where}"
    instead = "set stand_in=activation or stand_in=decoder_norm to fold by another scale"
    if sae.threshold is None:
        return (
            f"{where} has no thresholds (its activation is {sae.activation}), so it cannot be "
            f"folded by thresholds; choose a JumpReLU SAE, or {instead}"
        )
    bad = torch.nonzero(sae.threshold <= 0).flatten().tolist()
    shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
    return (
        f"{where}: {len(bad)} of {sae.n_features} thresholds are zero or negative (features "
        f"{shown}), and folding divides by them; choose an SAE whose thresholds are positive, or "
        f"{instead}"
    )


def rescale(sae: SaeParams, scale: Float[Tensor, " n_features"]) -> SaeParams:
    """Divide each activation by its ``scale`` and multiply its decoder vector by it (eq. 4).

    TopK still ranks features by their activations before the division.
    """
    rank_scale = sae.rank_scale
    if sae.activation == "topk":
        rank_scale = scale if rank_scale is None else rank_scale * scale
    return replace(
        sae,
        W_enc=sae.W_enc / scale,
        b_enc=sae.b_enc / scale,
        threshold=None if sae.threshold is None else sae.threshold / scale,
        W_dec=sae.W_dec * scale[:, None],
        rank_scale=rank_scale,
        stand_in=None if sae.stand_in is None else sae.stand_in / scale,
    )


def threshold_kind(sae: SaeParams) -> str:
    """Return which thresholds the SAE has: ``per feature``, ``one for all`` or ``none``."""
    if sae.threshold is None:
        return "none"
    return "one for all" if _constant(sae.threshold) else "per feature"


def is_uniform(sae: SaeParams) -> bool:
    """Return whether all features have the same scale: then folding keeps any decoder match."""
    scale = _threshold_scale(sae)
    return scale is not None and _constant(scale)


def _constant(values: Float[Tensor, " n"]) -> bool:
    return bool((values == values[0]).all())

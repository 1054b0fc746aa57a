"""Folding: move a positive scale of each feature from its activation into its decoder vector."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.sae.params import SaeParams

FOLDS = ("threshold", "decoder_norm", "none")


def fold(sae: SaeParams, by: str) -> SaeParams:
    """Return the SAE in another gauge; it reconstructs the same hidden states.

    ``threshold``     the paper's folding (eq. 4): every threshold becomes 1
    ``decoder_norm``  the gauge of the unfolded matching: every decoder vector has norm 1
    ``none``          as the SAE was trained, whatever norm its decoder vectors have

    Raises ``ValueError`` for an unknown name and for thresholds that are missing or not positive.
    """
    return sae if by == "none" else rescale(sae, fold_scale(sae, by))


def fold_scale(sae: SaeParams, by: str) -> Float[Tensor, " n_features"]:
    """Return the positive factor by which the fold divides each feature's activation.

    A decoder vector of norm 0 has no gauge; ``decoder_norm`` leaves its feature as it is.
    """
    if by == "none":
        return torch.ones_like(sae.b_enc)
    if by == "decoder_norm":
        norm = torch.linalg.vector_norm(sae.W_dec, dim=1)
        return torch.where(norm > 0, 1.0 / norm, 1.0)
    if by != "threshold":
        raise ValueError(f"unknown fold {by!r}: choose one of {', '.join(FOLDS)}")
    where = f"SAE {sae.origin.release}/{sae.origin.sae_id}"
    if sae.threshold is None:
        raise ValueError(
            f"{where} has no thresholds (its activation is {sae.activation}), so it cannot be "
            "folded by them; choose a JumpReLU SAE"
        )
    bad = torch.nonzero(sae.threshold <= 0).flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"{where}: {len(bad)} of {sae.n_features} thresholds are zero or negative (features "
            f"{shown}), and folding divides by them; choose an SAE whose thresholds are positive"
        )
    return sae.threshold


def rescale(sae: SaeParams, scale: Float[Tensor, " n_features"]) -> SaeParams:
    """Divide each activation by its ``scale`` and multiply its decoder vector by it (eq. 4)."""
    return replace(
        sae,
        W_enc=sae.W_enc / scale,
        b_enc=sae.b_enc / scale,
        threshold=None if sae.threshold is None else sae.threshold / scale,
        W_dec=sae.W_dec * scale[:, None],
    )


def is_uniform(sae: SaeParams) -> bool:
    """Whether one threshold serves all features, so that folding cannot change a decoder match."""
    return sae.threshold is not None and bool((sae.threshold == sae.threshold[0]).all())

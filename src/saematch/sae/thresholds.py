"""What an SAE's thresholds are like, and what folding by them makes of its encoder biases."""

from __future__ import annotations

import torch

from saematch.core.errors import InputError
from saematch.sae.folding import fold_scale, threshold_kind
from saematch.sae.params import SaeParams


def threshold_summary(sae: SaeParams) -> dict[str, float | str | None]:
    """Return whether the SAE has thresholds, their mean and spread (standard deviation over mean).

    The spread is None where the mean is not positive. ``bias_share`` is how much of the squared
    norm of the vectors that the paper's objective compares (eq. 3, folded) is encoder bias, between
    0 and 1; None for an SAE that cannot be folded.
    """
    mean = spread = None
    if sae.threshold is not None:
        theta = sae.threshold.double()
        mean = theta.mean().item()
        spread = theta.std(correction=0).item() / mean if mean > 0 else None
    return {
        "thresholds": threshold_kind(sae),
        "threshold_mean": mean,
        "threshold_spread": spread,
        "bias_share": _bias_share(sae),
    }


def _bias_share(sae: SaeParams) -> float | None:
    try:
        scale = fold_scale(sae, "threshold").double()
    except InputError:
        return None
    decoder = torch.linalg.vector_norm(sae.W_dec, dim=1).double() * scale
    encoder = torch.linalg.vector_norm(sae.W_enc, dim=0).double() / scale
    bias = sae.b_enc.double() / scale
    squares = [part.square().sum().item() for part in (bias, encoder, decoder)]
    return squares[0] / sum(squares) if sum(squares) else None

"""Statistics of an SAE's thresholds, and of its encoder biases after folding by them."""

from __future__ import annotations

import torch

from saematch.core.errors import InputError
from saematch.sae.folding import fold_scale, threshold_kind
from saematch.sae.params import SaeParams


def threshold_summary(sae: SaeParams) -> dict[str, float | str | None]:
    """Return the kind of the SAE's thresholds, and their mean and spread.

    The spread is the standard deviation over the mean; None if the mean is not positive.
    ``bias_share``, between 0 and 1, is the encoder biases' share of the squared norm of the
    vectors that the paper's objective compares (eq. 3, folded); None if the SAE cannot be folded.
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

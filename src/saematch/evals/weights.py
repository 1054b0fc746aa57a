"""Metrics that need weights alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saematch.matching.match import Match
from saematch.sae.folding import fold
from saematch.sae.params import SaeParams

PARTS = ("W_enc", "b_enc", "W_dec")


def squared_errors(
    earlier: SaeParams, later: SaeParams, match: Match
) -> dict[str, Float[Tensor, " n_pairs"]]:
    """Return, by part, each matched pair's squared error, mean over coordinates.

    Both SAEs must be in the gauge in which the error is meant; the paper measures it on folded
    parameters whatever the match was found on.
    """
    i, j = match.rows, match.columns
    return {
        "W_enc": (earlier.W_enc.T[i] - later.W_enc.T[j]).double().square().mean(dim=1),
        "b_enc": (earlier.b_enc[i] - later.b_enc[j]).double().square(),
        "W_dec": (earlier.W_dec[i] - later.W_dec[j]).double().square().mean(dim=1),
    }


def mse(earlier: SaeParams, later: SaeParams, match: Match) -> dict[str, float | None]:
    """Return the paper's MSE by part (figure 3): over matched features and coordinates, folded.

    None where nothing is matched.
    """
    if not len(match.rows):
        return dict.fromkeys(PARTS)
    errors = squared_errors(fold(earlier, "threshold"), fold(later, "threshold"), match)
    return {part: errors[part].mean().item() for part in PARTS}


def threshold_summary(sae: SaeParams) -> dict[str, float]:
    """Return the mean threshold and its spread (standard deviation over mean)."""
    if sae.threshold is None:
        return {}
    theta = sae.threshold.double()
    return {
        "threshold_mean": theta.mean().item(),
        "threshold_spread": (theta.std(correction=0) / theta.mean()).item(),
    }

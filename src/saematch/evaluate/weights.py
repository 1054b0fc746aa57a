"""Metrics that need weights alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saematch.core.match import Match
from saematch.sae.folding import fold
from saematch.sae.params import SaeParams

PARTS = ("W_enc", "b_enc", "W_dec")


def squared_errors(
    source: SaeParams, target: SaeParams, match: Match
) -> dict[str, Float[Tensor, " n_pairs"]]:
    """Return, by part, each matched pair's squared error, mean over coordinates.

    Both SAEs must be in the gauge in which the error is meant; the paper measures it on folded
    parameters whatever the match was found on.
    """
    i, j = match.rows, match.columns
    return {
        "W_enc": (source.W_enc.T[i] - target.W_enc.T[j]).double().square().mean(dim=1),
        "b_enc": (source.b_enc[i] - target.b_enc[j]).double().square(),
        "W_dec": (source.W_dec[i] - target.W_dec[j]).double().square().mean(dim=1),
    }


def mse(source: SaeParams, target: SaeParams, match: Match) -> dict[str, float | None]:
    """Return the paper's MSE by part (figure 3): over matched features and coordinates, folded.

    None where nothing is matched.
    """
    if not len(match.rows):
        return dict.fromkeys(PARTS)
    errors = squared_errors(fold(source, "threshold"), fold(target, "threshold"), match)
    return {part: errors[part].mean().item() for part in PARTS}


def feature_mse(source: SaeParams, target: SaeParams, match: Match) -> Float[Tensor, " n_pairs"]:
    """Return each matched pair's squared error of folded decoder vectors, mean over coordinates."""
    errors = squared_errors(fold(source, "threshold"), fold(target, "threshold"), match)
    return errors["W_dec"]


def least(errors: Float[Tensor, " n_pairs"], quantile: float) -> Bool[Tensor, " n_pairs"]:
    """Return which pairs belong to the ``quantile`` share of least error (app. B).

    Of equal errors the first come first; 1 is all of them and 0 none.
    """
    order = errors.argsort(stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: round(quantile * len(order))]] = True
    return chosen


def decoder_norm_change(
    source: SaeParams, target: SaeParams, match: Match
) -> dict[str, float | None]:
    """Return how the norm of a folded decoder vector changes to its partner's (figure 1).

    The mean over pairs, and the quartiles; the mean is the same for every permutation, the
    quartiles are not. None where nothing is matched.
    """
    names = ("decoder_norm_change", "decoder_norm_change_q25", "decoder_norm_change_q75")
    if not len(match.rows):
        return dict.fromkeys(names)
    before, after = (
        torch.linalg.vector_norm(fold(sae, "threshold").W_dec.double(), dim=1)
        for sae in (source, target)
    )
    change = after[match.columns] - before[match.rows]
    quartiles = np.quantile(change.numpy(), [0.25, 0.75])  # torch's takes 2^24 values at most
    return dict(zip(names, (change.mean().item(), *map(float, quartiles)), strict=True))

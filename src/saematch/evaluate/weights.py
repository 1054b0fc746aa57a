"""Metrics that need weights alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from saematch.core.match import Match
from saematch.sae.folding import fold
from saematch.sae.params import SaeParams

PARTS = ("W_enc", "b_enc", "W_dec")


ENTRIES_AT_ONCE = 2**15
"""Entries whose vectors are held at a time."""


def squared_errors(
    source: SaeParams, target: SaeParams, match: Match
) -> dict[str, Float[Tensor, " n_entries"]]:
    """Return, by part, the squared error of each entry's two features, mean over coordinates.

    Weights are not used. Both SAEs must be in the gauge in which the error is meant; the paper
    measures it on folded parameters whatever the match was found on.
    """
    errors: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for i, j in zip(
        match.rows.split(ENTRIES_AT_ONCE), match.columns.split(ENTRIES_AT_ONCE), strict=True
    ):
        encoder = (source.W_enc.T[i] - target.W_enc.T[j]).double()
        errors["W_enc"].append(encoder.square().mean(dim=1))
        errors["b_enc"].append((source.b_enc[i] - target.b_enc[j]).double().square())
        errors["W_dec"].append((source.W_dec[i] - target.W_dec[j]).double().square().mean(dim=1))
    return {part: torch.cat(of_part) for part, of_part in errors.items()}


def mse(source: SaeParams, target: SaeParams, match: Match) -> dict[str, float | None]:
    """Return the paper's MSE by part (figure 3), on folded parameters.

    The mean over coordinates and over entries, these weighted by their absolute weight. None where
    nothing is matched.
    """
    errors = squared_errors(fold(source, "threshold"), fold(target, "threshold"), match)
    return {part: _weighted_mean(errors[part], match) for part in PARTS}


def feature_mse(source: SaeParams, target: SaeParams, match: Match) -> Float[Tensor, " n_entries"]:
    """Return each entry's squared error of folded decoder vectors, mean over coordinates."""
    errors = squared_errors(fold(source, "threshold"), fold(target, "threshold"), match)
    return errors["W_dec"]


def row_errors(source: SaeParams, target: SaeParams, match: Match) -> Float[Tensor, " n_matched"]:
    """Return the squared error of each source feature that has an entry, in order.

    ``mean((d_i - sum_j w_ij e_j)^2)`` over coordinates, of folded decoder vectors ``d`` and ``e``.
    """
    W_source, W_target = (fold(sae, "threshold").W_dec for sae in (source, target))
    features, counts = match.rows.unique_consecutive(return_counts=True)
    mixed = embedding_bag(
        match.columns,
        W_target,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=match.weights.to(W_target),
    )
    return (W_source[features] - mixed).double().square().mean(dim=1)


def of_least_error(match: Match, errors: Float[Tensor, " n_matched"], quantile: float) -> Match:
    """Return the match of the ``quantile`` share of rows of least error, with all their entries.

    ``errors`` has one value for each source feature that has an entry (app. B of the paper). Of
    equal errors the first come first; 1 is all of them and 0 none.
    """
    order = errors.argsort(stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: round(quantile * len(order))]] = True
    return match.keep(chosen[match.rows.unique_consecutive(return_inverse=True)[1]])


def decoder_norm_change(
    source: SaeParams, target: SaeParams, match: Match
) -> dict[str, float | None]:
    """Return how the norm of a folded decoder vector changes to its partner's (figure 1).

    The mean and the quartiles over entries, these weighted by their absolute weight. For weight 1
    the mean is the same for every permutation; the quartiles are not. None where nothing is
    matched.
    """
    before, after = (
        torch.linalg.vector_norm(fold(sae, "threshold").W_dec.double(), dim=1)
        for sae in (source, target)
    )
    change = after[match.columns] - before[match.rows]
    quartiles = (_weighted_quantile(change, match, share) for share in (0.25, 0.75))
    names = ("decoder_norm_change", "decoder_norm_change_q25", "decoder_norm_change_q75")
    return dict(zip(names, (_weighted_mean(change, match), *quartiles), strict=True))


def _weighted_mean(values: Float[Tensor, " n_entries"], match: Match) -> float | None:
    mass = match.weights.abs()
    return ((values * mass).sum() / mass.sum()).item() if mass.any() else None


def _weighted_quantile(
    values: Float[Tensor, " n_entries"], match: Match, share: float
) -> float | None:
    """Interpolate between the sorted values, each at the middle of its stretch of mass.

    Equal to the quantile without weights if all weights are equal. Entries of weight 0 have no
    part in it.
    """
    mass = match.weights.abs()
    if not mass.any():
        return None
    values, mass = values[mass > 0], mass[mass > 0]
    order = values.argsort()
    middles = mass[order].cumsum(0) - mass[order] / 2
    at = middles[0] + share * (middles[-1] - middles[0])
    return float(np.interp(at.item(), middles.numpy(), values[order].numpy()))

"""How good an SAE of the zoo is: the numbers of its card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saematch.sae.params import SaeParams
from saematch.sae.training_state import CHUNK, spread

DEAD_TOKENS = 131_072
"""Training tokens on which a feature must be active once to count as alive."""


@dataclass(frozen=True)
class Quality:
    """One SAE's numbers."""

    explained_variance: float
    """``1 - sum Var(x_hat - x) / sum Var(x)`` on held-out texts, variances over tokens."""
    l0: float
    """Mean number of active features a token on held-out texts."""
    dead_features: int
    """Features never active on ``dead_tokens`` training tokens."""
    dead_tokens: int
    threshold_mean: float
    threshold_spread: float
    """Standard deviation of the thresholds over their mean."""


def measure(sae: SaeParams, training: np.ndarray, held_out: np.ndarray) -> Quality:
    """Measure an SAE on stored hidden states ``[n, d_model]``."""
    x_all = torch.from_numpy(np.array(held_out)).float()
    error = torch.zeros(sae.d_model, dtype=torch.float64)
    square, active = error.clone(), 0
    for x in x_all.split(CHUNK):
        features = sae.encode(x)
        active += int((features > 0).sum())
        wrong = (sae.decode(features) - x).double()
        error += wrong.sum(0)
        square += wrong.square().sum(0)
    n = len(x_all)
    unexplained = (square / n - (error / n).square()).sum()
    total = x_all.double().var(0, correction=0).sum()
    sample = spread(training, DEAD_TOKENS)
    highest = torch.full((sae.n_features,), -torch.inf)
    for x in sample.split(CHUNK):
        highest = torch.maximum(highest, torch.addmm(sae.b_enc, x, sae.W_enc).amax(0))
    assert sae.threshold is not None
    mean = float(sae.threshold.mean())
    return Quality(
        explained_variance=1 - float(unexplained / total),
        l0=active / n,
        dead_features=int((highest <= sae.threshold).sum()),
        dead_tokens=len(sample),
        threshold_mean=mean,
        threshold_spread=float(sae.threshold.std()) / mean,
    )

"""A synthetic population of texts, and the metrics of text sets sampled from it."""

from __future__ import annotations

import numpy as np
import torch

from saematch.core.columns import EXPLAINED_VARIANCE, Column
from saematch.evaluate.co_activation import MEAN_L0, SCORES, co_activation
from saematch.evaluate.counts import JACCARD, MATCHING_SCORE, PairCounts
from saematch.evaluate.metrics import explained_variance, mean
from saematch.evaluate.skipping import LOSS

D_MODEL = 4


class Population:
    """Texts of log-normal length, whose features fire in bursts; a third of the features is rare.

    Each text has a quality that all its features share. The scales of errors and losses differ
    between texts by log-normal factors (0.2 and 0.5; on the embedded texts they are 0.04 to 0.13,
    and 0.1 to 0.7).
    """

    def __init__(self, n_features: int = 200, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rate = np.exp(random.uniform(np.log(0.003), np.log(10), n_features))
        good = random.random(n_features) < 0.6
        share = np.where(good, random.beta(8, 2, n_features), random.beta(1, 6, n_features))
        self.logit = np.log(share.clip(0.01, 0.99) / (1 - share.clip(0.01, 0.99)))
        self.extra = self.rate * np.exp(random.normal(-0.5, 1, n_features))

    def draw(self, n: int, random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the sums of ``n`` texts."""
        length = np.exp(random.normal(-0.18, 0.6, n))[:, None]

        def fired(rate):
            return random.poisson(length * rate * random.gamma(0.4, 2.5, (n, len(rate))))

        own = fired(self.rate)
        share = 1 / (1 + np.exp(-self.logit - random.normal(0, 0.3, (n, 1))))
        both = random.binomial(own, random.beta(4 * share, 4 - 4 * share))
        counts = np.maximum(2, 60 * length[:, 0]).astype(int)
        x_sum, x_square = _sums(random, counts, 1.0, random.lognormal(0, 0.15, n))
        error_sum, error_square = _sums(random, counts, 0.3, random.lognormal(-1, 0.2, n))
        loss = counts * random.lognormal(0, 0.5, n)
        sums = {"both": both, "own": own, "partner": both + fired(self.extra), "counts": counts,
                "x_sum": x_sum, "x_square": x_square, "error_sum": error_sum,
                "error_square": error_square, "loss": loss}  # fmt: skip
        return {name: torch.from_numpy(values) for name, values in sums.items()}


def _sums(random, counts, spread, scale):
    """Sums and squared norms of a text's vectors: a mean of its own, and noise of its own scale."""
    n = counts[:, None]
    mean = random.normal(0, spread, (len(counts), D_MODEL))
    noise = random.normal(0, 1, (len(counts), D_MODEL)) * np.sqrt(n) * scale[:, None]
    square = (n * mean**2 + 2 * mean * noise).sum(axis=1)
    return n * mean + noise, square + scale**2 * random.chisquare(D_MODEL * counts)


LIVE, MACRO = (
    next(column for column in SCORES if column.name == f"matching_score_{name}")
    for name in ("live", "macro")
)


def metrics(weights: torch.Tensor, sums: dict[str, torch.Tensor]) -> dict[Column, torch.Tensor]:
    """Return the metrics of a text set and its replicates."""
    counts, both = sums["counts"], sums["both"]
    one_each = torch.ones(both.shape[1], dtype=torch.int64)
    pair_counts = PairCounts(both, sums["own"], sums["partner"], both.sum(dim=1))
    scores = co_activation(weights, pair_counts, one_each)
    names = ("error_sum", "error_square", "x_sum", "x_square", "counts")
    values = {
        EXPLAINED_VARIANCE: explained_variance(weights, *(sums[name] for name in names)),
        LOSS: mean(weights, sums["loss"], counts),
        MEAN_L0: mean(weights, sums["own"].sum(dim=1).double(), counts),
    }
    for column in (MATCHING_SCORE, LIVE, MACRO, JACCARD):
        values[column] = getattr(scores, column.name)
    return values | {MACRO.difference: values[MACRO] - values[MATCHING_SCORE]}

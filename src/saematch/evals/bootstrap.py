"""Metrics from sums by text, each with an interval from a bootstrap over texts.

Every function takes ``weights`` ``[1 + n_resamples, n_texts]``: how often each text counts. Its
first row is all ones, so the first value is the metric itself and the others are its resamples.
Metrics of one run share the weights, so differences between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

FEATURES_AT_ONCE = 4096
"""Features of which resampled counts are held at a time."""

Weights = Float64[Tensor, "n_values n_texts"]
Values = Float64[Tensor, " n_values"]


@dataclass(frozen=True)
class Bootstrap:
    """Spec of the intervals: texts are drawn with replacement, each data set apart.

    What a judge said is drawn by feature path instead.
    """

    n_resamples: int = 1000
    """0 leaves the intervals out."""
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.n_resamples >= 0 and 0 < self.level < 1):
            raise ValueError(
                f"bootstrap.n_resamples={self.n_resamples} and bootstrap.level={self.level}: at "
                "least 0 resamples, and a level between 0 and 1, are needed"
            )

    def weights(self, n_texts: Sequence[int]) -> list[Weights]:
        """Return the weights of each data set of so many texts."""
        generator = torch.Generator().manual_seed(self.seed)
        return [self._draw(n, generator) for n in n_texts]

    def _draw(self, n_texts: int, generator: torch.Generator) -> Weights:
        drawn = torch.randint(n_texts, (self.n_resamples, n_texts), generator=generator)
        weights = torch.zeros(1 + self.n_resamples, n_texts, dtype=torch.float64)
        weights[1:].scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        weights[0] = 1
        return weights

    def row(self, name: str, values: Values) -> dict[str, float | None]:
        """Return the metric and the ends of its interval, as columns of a table.

        The interval holds the middle ``level`` of the resamples (percentile bootstrap), those left
        out that drew nothing to measure. None stands for what nothing was measured of.
        """
        found: list[float | None] = [values[0].item(), None, None]
        if len(values) > 1:
            tail = (1 - self.level) / 2
            ends = values[1:].nanquantile(values.new_tensor([tail, 1 - tail]))
            found[1:] = ends.tolist()
        known = (None if value is None or math.isnan(value) else value for value in found)
        return dict(zip((name, f"{name}_low", f"{name}_high"), known, strict=True))


def mean(
    weights: Weights, sums: Float64[Tensor, " n_texts"], counts: Int64[Tensor, " n_texts"]
) -> Values:
    """Return the mean over tokens from sums and numbers of tokens by text."""
    return (weights @ sums) / (weights @ counts.double())


def explained_variance(
    weights: Weights,
    error_sum: Float64[Tensor, "n_texts d_model"],
    error_square: Float64[Tensor, " n_texts"],
    x_sum: Float64[Tensor, "n_texts d_model"],
    x_square: Float64[Tensor, " n_texts"],
    counts: Int64[Tensor, " n_texts"],
) -> Values:
    """Return ``1 - sum Var(x_hat - x) / sum Var(x)``, variances over tokens.

    Takes sums over each text's tokens of the vectors and of their squared norms. 1 is perfect, 0 is
    as good as the mean, negative is worse.
    """
    n = weights @ counts.double()
    unexplained = _variance(weights, error_sum, error_square, n)
    return 1 - unexplained / _variance(weights, x_sum, x_square, n)


def _variance(weights: Weights, sums: Tensor, squares: Tensor, n: Values) -> Values:
    """``sum |v|^2 / n - |sum v / n|^2``; the second from inner products of the texts' sums."""
    gram = sums @ sums.T
    return weights @ squares / n - ((weights @ gram) * weights).sum(dim=1) / n.square()


@dataclass(frozen=True)
class CoActivation:
    """How often matched features are active on the same token."""

    matching_score: Values
    """Over all (token, feature active at the earlier layer): share whose partner is active at the
    later one (micro average)."""
    matching_score_live: Values
    """The same without features whose partner never fired."""
    matching_score_macro: Values
    """Mean of the same share over the earlier features that fired at all."""
    jaccard: Values
    """Mean over earlier features that fired of both / either."""
    n_live: int
    """Earlier features that fired, what the last two are means over."""
    n_dead: int
    n_dead_partners: int
    """Features that fired, but whose partner never did."""


def co_activation(
    weights: Weights,
    both: Int64[Tensor, "n_texts n_features"],
    fired_from: Int64[Tensor, "n_texts n_features"],
    fired_partner: Int64[Tensor, "n_texts n_features"],
) -> CoActivation:
    """Score a match from counts by text and earlier feature.

    ``both``: tokens with the feature and its partner active; ``fired_from``: with the feature;
    ``fired_partner``: with the partner, 0 where there is none. Nothing that fired scores 0.
    """
    live = fired_from.any(dim=0)
    alive = fired_partner.any(dim=0)
    hits = weights @ both.sum(dim=1).double()
    return CoActivation(
        share(hits, weights @ fired_from.sum(dim=1).double()),
        share(hits, weights @ fired_from[:, alive].sum(dim=1).double()),
        *_feature_means(weights, both[:, live], fired_from[:, live], fired_partner[:, live]),
        int(live.sum()),
        int((~live).sum()),
        int((live & ~alive).sum()),
    )


def _feature_means(
    weights: Weights, both: Tensor, fired: Tensor, partner: Tensor
) -> tuple[Values, Values]:
    """Return the means of both / fired and both / either over features that fired."""
    macro, jaccard, n = (torch.zeros(len(weights), dtype=torch.float64) for _ in range(3))
    exact = weights.float()  # counts stay far below 2^24
    for part in torch.arange(fired.shape[1]).split(FEATURES_AT_ONCE):
        hits, own, its = (exact @ counts[:, part].float() for counts in (both, fired, partner))
        macro += share(hits, own).sum(dim=1)
        jaccard += share(hits, own + its - hits).masked_fill_(own == 0, 0).sum(dim=1)
        n += (own > 0).sum(dim=1)
    return share(macro, n), share(jaccard, n)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, and 0 where there is nothing."""
    return torch.where(whole > 0, part / whole, 0)

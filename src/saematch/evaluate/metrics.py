"""Metrics from sums by text.

Every function takes ``weights`` ``[1 + n_replicates, n_texts]``: how often each text counts. Its
first row is all ones, so the first value is the metric itself and the others are its replicates
(``intervals``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.evaluate.intervals import Values, Weights

FEATURES_AT_ONCE = 4096
"""Features of which replicated counts are held at a time."""


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
    """How often matched features are active on the same token.

    Of a feature with several partners, any of them may be active.
    """

    matching_score: Values
    """Over all (token, feature active at the source): share with an active partner at the target
    (micro average). A feature without a partner counts as a miss."""
    matching_score_entries: Values
    """Over all (token, feature active at the source, partner of it): share whose partner is active;
    NaN if there are none. Weights are not used."""
    matching_score_live: Values
    """``matching_score`` without features whose partners never fired."""
    matching_score_matched: Values
    """The same over features with a partner only; NaN if none of those fired."""
    matching_score_macro: Values
    """Mean of the share over the source features that fired at all."""
    jaccard: Values
    """Mean over source features that fired of both / either."""
    n_live: int
    """Source features that fired: the last two metrics are means over these. It is the sum of the
    last three counts."""
    n_dead: int
    """Source features that never fired."""
    n_unmatched: int
    """Features that fired and have no partner."""
    n_dead_partners: int
    """Features that fired and have partners, none of which fired."""
    n_both_live: int
    """Features that fired and of whose partners some fired too."""


def co_activation(
    weights: Weights,
    both: Int64[Tensor, "n_texts n_features"],
    fired_source: Int64[Tensor, "n_texts n_features"],
    fired_target: Int64[Tensor, "n_texts n_features"],
    entries: Int64[Tensor, " n_texts"],
    n_partners: Int64[Tensor, " n_features"],
) -> CoActivation:
    """Score a match from counts by text and source feature.

    ``both``: tokens with the feature and any of its partners active; ``fired_source``: with the
    feature; ``fired_target``: with any of its partners, 0 where there is none; ``entries``: tokens
    with both features of an entry active, added up over the entries. The scores are 0 if no feature
    fired.
    """
    partnered = n_partners > 0
    live = fired_source.any(dim=0)
    both_live = live & fired_target.any(dim=0)
    unmatched = live & ~partnered
    hits = weights @ both.sum(dim=1).double()

    def fired(features: Tensor) -> Values:
        return weights @ fired_source[:, features].sum(dim=1).double()

    counts = (both[:, live], fired_source[:, live], fired_target[:, live])
    macro, jaccard, fired_live = _by_feature(weights, *counts, unmatched[live])
    return CoActivation(
        share(hits, fired(live)),
        weights @ entries.double() / (weights @ (fired_source @ n_partners).double()),
        share(hits, fired_live),
        hits / fired(live & partnered),
        macro,
        jaccard,
        n_live=int(live.sum()),
        n_dead=int((~live).sum()),
        n_unmatched=int(unmatched.sum()),
        n_dead_partners=int((live & partnered & ~both_live).sum()),
        n_both_live=int(both_live.sum()),
    )


def _by_feature(
    weights: Weights, both: Tensor, fired: Tensor, partner: Tensor, unmatched: Tensor
) -> tuple[Values, Values, Values]:
    """Return what depends on which features fire in each replicate.

    These are the means of both / fired and of both / either over features that fired, and the
    number of activations of features that are unmatched or whose partner fired.
    """
    macro, jaccard, n, live = (torch.zeros(len(weights), dtype=torch.float64) for _ in range(4))
    exact = weights.float()  # counts stay far below 2^24
    for part in torch.arange(fired.shape[1]).split(FEATURES_AT_ONCE):
        hits, own, its = (
            (exact @ counts[:, part].float()).double() for counts in (both, fired, partner)
        )
        macro += share(hits, own).sum(dim=1)
        jaccard += share(hits, own + its - hits).masked_fill_(own == 0, 0).sum(dim=1)
        n += (own > 0).sum(dim=1)
        live += torch.where((its > 0) | unmatched[part], own, 0).sum(dim=1)
    return share(macro, n), share(jaccard, n), live


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, and 0 where there is nothing."""
    return torch.where(whole > 0, part / whole, 0)

"""Metrics from sums by text.

The parameter ``weights`` ``[1 + n_replicates, n_texts]`` has how often each text counts. Its first
row is all ones, so the first value is the metric itself and the others are its replicates
(``intervals``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.evaluate.intervals import Values, Weights


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

    The arguments are sums over the tokens of each text, of vectors and of their squared norms. 1 is
    perfect, 0 is as good as the mean, and a negative value is worse.
    """
    n = weights @ counts.double()
    unexplained = _variance(weights, error_sum, error_square, n)
    return 1 - unexplained / _variance(weights, x_sum, x_square, n)


def _variance(weights: Weights, sums: Tensor, squares: Tensor, n: Values) -> Values:
    """Return ``sum |v|^2 / n - |sum v / n|^2``, from inner products of the sums by text."""
    gram = sums @ sums.T
    return weights @ squares / n - ((weights @ gram) * weights).sum(dim=1) / n.square()


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, and 0 where ``whole`` is 0."""
    return torch.where(whole > 0, part / whole, 0)

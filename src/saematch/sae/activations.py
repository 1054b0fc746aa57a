"""Sparse feature activations: the cost of decoding depends on the active features, not on all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from saematch.sae.params import SaeParams

ENCODE_CHUNK = 2**24
"""Number of pre-activations in memory at a time: tokens times features."""


@dataclass(frozen=True)
class SparseFeatures:
    """Active features of each token, by token."""

    starts: Int64[Tensor, " n_tokens"]
    """Index of each token's first entry."""
    features: Int64[Tensor, " n_active"]
    values: Float[Tensor, " n_active"]
    n_features: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including those without an active feature."""
        return len(self.starts)

    def tokens(self) -> Int64[Tensor, " n_active"]:
        """Return the token of each entry."""
        return torch.repeat_interleave(self.counts())

    def counts(self) -> Int64[Tensor, " n_tokens"]:
        """Return the number of entries of each token."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.features)])])
        return ends - self.starts

    def padded(self, tokens: Int64[Tensor, " n"]) -> PaddedFeatures:
        """Return the entries of some tokens, one row for each."""
        counts = self.counts()[tokens]
        places = torch.arange(int(counts.max()) if len(counts) else 0, device=self.starts.device)
        is_active = places < counts[:, None]
        entries = torch.where(is_active, self.starts[tokens, None] + places, 0)
        if not len(self.features):
            return PaddedFeatures(entries, entries.float(), is_active)
        return PaddedFeatures(self.features[entries], self.values[entries], is_active)

    def keep(self, features: Bool[Tensor, " n_features"]) -> SparseFeatures:
        """Return the same tokens with only the chosen features."""
        kept = features[self.features]
        counts = torch.bincount(self.tokens()[kept], minlength=self.n_tokens)
        starts = torch.cumsum(counts, 0) - counts
        return SparseFeatures(starts, self.features[kept], self.values[kept], self.n_features)

    def dense(self) -> Bool[Tensor, "n_tokens n_features"]:
        """Return which features are active."""
        active = torch.zeros(
            self.n_tokens, self.n_features, dtype=torch.bool, device=self.features.device
        )
        active[self.tokens(), self.features] = True
        return active


class PaddedFeatures(NamedTuple):
    """Active features of some tokens, one row for each; features past the last are arbitrary."""

    features: Int64[Tensor, "n most"]
    values: Float[Tensor, "n most"]
    is_active: Bool[Tensor, "n most"]


def encode(sae: SaeParams, x: Float[Tensor, "n_tokens d_model"]) -> SparseFeatures:
    """Return the active features of each hidden state."""
    size = max(1, ENCODE_CHUNK // sae.n_features)
    tokens, features, values = [], [], []
    for number, chunk in enumerate(x.split(size)):
        activations = sae.encode(chunk)
        token, feature = torch.nonzero(activations, as_tuple=True)
        tokens.append(token + number * size)
        features.append(feature)
        values.append(activations[token, feature])
    token = torch.cat(tokens)
    counts = torch.bincount(token, minlength=len(x))
    starts = torch.cumsum(counts, 0) - counts
    return SparseFeatures(starts, torch.cat(features), torch.cat(values), sae.n_features)


def decode(sae: SaeParams, active: SparseFeatures) -> Float[Tensor, "n_tokens d_model"]:
    """Return the hidden states that the SAE reconstructs from the active features."""
    return weighted_sum(active, sae.W_dec) + sae.b_dec


def weighted_sum(
    active: SparseFeatures, vectors: Float[Tensor, "n_features d_model"]
) -> Float[Tensor, "n_tokens d_model"]:
    """Return the sum of the active features' vectors, each multiplied by its activation."""
    return embedding_bag(
        active.features, vectors, active.starts, mode="sum", per_sample_weights=active.values
    )


class Encoded(NamedTuple):
    """Pre-activations and activations of some features of each hidden state."""

    pre: Float[Tensor, "n most"]
    """Pre-activation, before any threshold."""
    values: Float[Tensor, "n most"]
    """Activation."""


def encode_at(
    sae: SaeParams, x: Float[Tensor, "n d_model"], features: Int64[Tensor, "n most"]
) -> Encoded:
    """Return some features of each hidden state, without computing the others.

    The activations of a TopK SAE depend on all features, so it computes all of them.
    """
    W_enc = sae.W_enc.T
    size = max(1, ENCODE_CHUNK // max(features.shape[1] * sae.d_model, 1))
    parts = []
    for states, chosen in zip(x.split(size), features.split(size), strict=True):
        parts.append(torch.einsum("nd,nkd->nk", states, W_enc[chosen]) + sae.b_enc[chosen])
    pre = torch.cat(parts) if parts else x.new_zeros(features.shape)
    if sae.k is None:
        floor = 0.0 if sae.threshold is None else sae.threshold.clamp(min=0.0)[features]
        return Encoded(pre, torch.where(pre > floor, pre, 0.0))
    size = max(1, ENCODE_CHUNK // sae.n_features)
    values = [
        sae.encode(s).gather(1, c) for s, c in zip(x.split(size), features.split(size), strict=True)
    ]
    return Encoded(pre, torch.cat(values) if values else pre)

"""Synthetic SAEs with a known match, for which folding must matter.

At its threshold, feature ``i`` of layer ``t`` adds the vector ``theta_i(t) d_i(t)`` to the hidden
state. The features of a group have nearly the same direction and differ in the length of this
vector. Lengths are log-normal and persist from layer to layer, so only a match that uses the
thresholds can distinguish the features of a group. All lengths grow with the layer, each at its own
pace, so only a decoding in units of the thresholds is accurate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import DEFAULT
from saematch.core.specs import AtLeast1, NotNegative, Seed, spec
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources.source import SaeOffer, SaeSource


@spec("sae")
class PlantedSaes:
    """Spec of the planted suite; the seed determines everything."""

    n_layers: AtLeast1 = 5
    n_features: AtLeast1 = 512
    d_model: AtLeast1 = 64
    group: AtLeast1 = 4
    """Number of features that share a direction."""
    drift: NotNegative = 0.2
    """Length of the noise added to a group's direction from one layer to the next, relative to a
    direction of length 1."""
    jitter: NotNegative = 0.05
    """Length of the noise added to each feature's direction, independently at each layer."""
    spread: NotNegative = 0.7
    """Standard deviation of the logarithm of thresholds."""
    growth: float = 0.3
    """Mean logarithm of a threshold's growth from one layer to the next."""
    pace: NotNegative = 0.1
    """Standard deviation, over features, of the logarithm of that growth."""
    gauge: NotNegative = 0.0
    """Standard deviation of the logarithm of the decoder vectors' norms. Activations and thresholds
    are scaled inversely, so no result may depend on it."""
    n_tokens: AtLeast1 = 2000
    """Number of synthetic tokens, each with ``mean_l0`` active features."""
    mean_l0: AtLeast1 = 20
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.n_features % self.group:
            raise InputError(
                f"sae.n_features={self.n_features} is not a multiple of sae.group={self.group}"
            )

    @property
    def name(self) -> str:
        """Return the name of the suite."""
        return f"planted, gauge {self.gauge:g}"

    def layers(self) -> list[int]:
        """Return all layers."""
        return list(range(self.n_layers))

    def load(self, layer: int) -> SaeParams:
        """Generate one layer's SAE. Each layer has its own random order of features."""
        directions, thresholds = self._features(layer)
        order = self._order(layer)
        directions, thresholds = directions[order], thresholds[order]
        random = self._random("gauge", layer)
        norms = torch.exp(self.gauge * torch.randn(self.n_features, generator=random))
        return SaeParams(
            W_enc=(directions / norms[:, None]).T.contiguous(),
            b_enc=torch.zeros(self.n_features),
            W_dec=directions * norms[:, None],
            b_dec=torch.zeros(self.d_model),
            threshold=thresholds / norms,
            activation="jumprelu",
            origin=SaeOrigin(layer, "planted", f"layer_{layer}", repr(self), "planted"),
        )

    def truth(self, source: int, target: int) -> Match:
        """Return the planted match."""
        return Match.from_columns(
            torch.argsort(self._order(target))[self._order(source)], self.n_features
        )

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the only SAE of the layer."""
        return [SaeOffer(float(self.mean_l0), self)]

    def codes(self, layer: int) -> tuple[Int64[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Return the active features of the synthetic tokens and their activations.

        A token has the same features, matched by the truth, at every layer. Activations are 1 to
        about 4 times the threshold.
        """
        size = self.n_tokens, self.mean_l0
        random = self._random("codes")
        chosen = torch.randint(self.n_features, size, generator=random)
        strength = 1 + torch.empty(size).exponential_(generator=random)
        features = torch.argsort(self._order(layer))[chosen]
        thresholds = self.load(layer).threshold
        assert thresholds is not None
        return features, strength * thresholds[features]

    def _features(self, layer: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Return directions and thresholds in the hidden order, for decoder vectors of norm 1."""
        n, d = self.n_features, self.d_model
        generator = self._random("features")

        def noise(rows: int) -> Float[Tensor, "{rows} d"]:
            return torch.randn(rows, d, generator=generator) / d**0.5

        shared = noise(n // self.group)
        logs = self.spread * torch.randn(n, generator=generator)
        for _ in range(layer):
            shared = shared + self.drift * noise(n // self.group)
            logs = logs + self.growth + self.pace * torch.randn(n, generator=generator)
        jitter = torch.randn(n, d, generator=self._random("jitter", layer)) / d**0.5
        directions = shared.repeat_interleave(self.group, dim=0) + self.jitter * jitter
        return directions / torch.linalg.vector_norm(directions, dim=1)[:, None], logs.exp()

    def _order(self, layer: int) -> Int64[Tensor, " n"]:
        return torch.randperm(self.n_features, generator=self._random("order", layer))

    def _random(self, purpose: str, layer: int = 0) -> torch.Generator:
        """Return an independent generator for each purpose and layer."""
        digest = hashlib.sha256(f"{self.seed} {purpose} {layer}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


@spec("selection")
class TwoGauges:
    """Spec: the planted suite, and a copy whose decoder vectors have random norms."""

    gauge: NotNegative = 1.0

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return both suites; ``InputError`` for SAEs that are not planted."""
        if not isinstance(source, PlantedSaes):
            raise InputError("selection=two_gauges requires sae=planted")
        return {DEFAULT: source, "other_gauge": replace(source, gauge=self.gauge)}

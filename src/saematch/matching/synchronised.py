"""The whole-model match: one permutation of each layer of a suite to a common universe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.core.cost import Cost
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.specs import AtLeast1, Share, spec
from saematch.core.store import read, read_facts, write
from saematch.matching.matchers.matcher import Matcher
from saematch.matching.objectives.factors import Factors
from saematch.matching.valued import pair_scores

log = logging.getLogger(__name__)

LEAST_GAIN = 1e-7
"""Relative gain below which a new permutation is the rounding of float32."""
LEAST_WEIGHT = 0.01
"""Weight below which a pair of layers is left out."""
FARTHEST = 2
"""Largest distance, in layers of the suite, of the direct matches that give the confidence."""


@spec("arms.synchronise")
class Synchronise:
    """Settings of the whole-model match of a suite, which matches all of its layers at once.

    Each layer ``l`` gets a permutation ``P_l`` to a universe of as many features. The permutations
    maximise the sum of ``w_lm <S_lm, P_l P_m'>`` over all pairs of layers ``l < m``, and the match
    of two layers is ``P_l P_m'``. Matches thus agree over cycles: 1 to 2 and 2 to 3 give 1 to 3.
    This is the objective of C2M3 (Crisostomi et al., NeurIPS 2024), a multi-way match, but with
    weights ``w_lm = decay ** (distance - 1)``, where the distance is in layers of the suite.

    The search is block coordinate ascent from the composed matches of neighbouring layers. As
    ``S_lm = X_l X_m'``, the best ``P_l`` for given others is one linear assignment of ``X_l`` to
    the weighted sum of the other layers' vectors in the universe's order. So the objective never
    falls, and the search ends when no layer changes.

    The confidence of a feature is our own definition: the share of the direct matches with the
    neighbouring and second next layers that give the feature the partner that it has here. It is 1
    minus the feature's cycle error. The score of an entry is the mean of its two features'
    confidences.

    It is right where features persist over several layers and single matches are noisy, since near
    layers vote. It is wrong where features change with depth: distant layers then pull features to
    wrong partners, which is why they weigh less. With equal weights, recall on the embedded family
    `mixed` falls below that of composed matches (layers 1 to 7: .68 and .77; ``decay=0.5``: .76). A
    sweep takes an assignment for each layer, and reads each layer once for each near layer.
    """

    level: float | None = None
    """Cosine that a feature must exceed, between its vector and the sum of the other layers'
    vectors of the same universe feature; otherwise the universe's feature is not in the layer, and
    the layer's feature stays unmatched. None matches every feature."""
    decay: Share = 0.5
    """Weight of a pair of layers, relative to a pair whose distance is smaller by one layer; 0
    compares neighbours only. Pairs of weight below 0.01 are left out."""
    max_sweeps: AtLeast1 = 20
    """Number of sweeps over all layers after which the search ends with a warning."""

    def __post_init__(self) -> None:
        if self.level is not None and not -1 <= self.level < 1:
            raise InputError(
                f"arms.synchronise.level={self.level}: give a cosine from -1 to less than 1, or "
                "null to match every feature"
            )

    def __call__(
        self,
        layers: Sequence[Callable[[], Factors]],
        direct: Callable[[int, int], Match],
        matcher: Matcher,
    ) -> tuple[Int64[Tensor, "layers F"], Float64[Tensor, "layers F"]]:
        """Return the universe feature (-1: none) and the confidence of each layer's features.

        ``layers`` return the vectors of one layer as a source and as a target. ``direct`` returns
        the permutation of two layers by position, and ``matcher`` solves the assignments.
        """
        classes = _composed([direct(n, n + 1) for n in range(len(layers) - 1)])
        cosines = self._ascend(layers, classes, matcher)
        confidence = _confidence(classes, direct)
        if self.level is not None:
            classes = torch.where(cosines > self.level, classes, -1)
        return classes, confidence

    def _ascend(
        self,
        layers: Sequence[Callable[[], Factors]],
        classes: Int64[Tensor, "layers F"],
        matcher: Matcher,
    ) -> Float64[Tensor, "layers F"]:
        """Improve the permutations in place; return the cosines of vectors and sums."""
        cosines = torch.zeros(classes.shape, dtype=torch.float64)
        unchanged = 0
        for _ in range(self.max_sweeps):
            for layer in range(len(layers)):
                compared = self._compared(layers, classes, layer)
                before = _scores(compared, classes[layer])
                best = matcher(compared).columns
                after = _scores(compared, best)
                changed = after.sum() - before.sum() > LEAST_GAIN * before.abs().sum()
                unchanged = 1 if changed else unchanged + 1
                if changed:
                    classes[layer] = best
                cosines[layer] = (after if changed else before) / _norms(compared, classes[layer])
                if unchanged == len(layers):
                    return cosines
        log.warning(
            "synchronise: permutations still changed in sweep %d; increase max_sweeps",
            self.max_sweeps,
        )
        return cosines

    def _compared(
        self,
        layers: Sequence[Callable[[], Factors]],
        classes: Int64[Tensor, "layers F"],
        layer: int,
    ) -> Factors:
        """Return a layer's vectors, and the weighted sum of the others in the universe's order."""
        own = layers[layer]()
        earlier, later = torch.zeros_like(own.X_A), torch.zeros_like(own.X_B)
        for other, factors_of in enumerate(layers):
            weight = self.decay ** (abs(other - layer) - 1) if other != layer else 0.0
            if weight < LEAST_WEIGHT:
                continue
            if other > layer:
                later.index_add_(0, classes[other], factors_of().X_B, alpha=weight)
            else:
                earlier.index_add_(0, classes[other], factors_of().X_A, alpha=weight)
        if torch.equal(own.X_A, own.X_B):
            return Factors(own.X_A, later.add_(earlier))
        return Factors(torch.cat([own.X_A, own.X_B], 1), torch.cat([later, earlier], 1))


@dataclass(frozen=True)
class Synchronised:
    """A whole-model match, stored by index."""

    keys: tuple[SaeKey, ...]
    classes: Int64[Tensor, "layers F"]
    """Universe feature of each layer's features; -1 for none."""
    confidence: Float64[Tensor, "layers F"]
    """Share of the direct matches with near layers that agree, for each feature."""
    cost: Cost | None = None
    """Cost of the search when it was done, if it is known."""

    def match(self, pair: Pair) -> Match:
        """Return the match of two layers; scores are confidences."""
        source, target = (self.keys.index(key) for key in pair)
        a, b = self.classes[source], self.classes[target]
        n = len(a)
        features = torch.full((n,), -1)
        features[b[b >= 0]] = torch.nonzero(b >= 0).flatten()
        match = Match.from_columns(torch.where(a >= 0, features[a], -1), n)
        sides = self.confidence[source][match.rows], self.confidence[target][match.columns]
        return replace(match, scores=(sides[0] + sides[1]) / 2)

    def save(self, path: Path, facts: Mapping[str, object]) -> None:
        """Write the arrays, and the facts with the cost as JSON."""
        tensors = {"classes": self.classes, "confidence": self.confidence}
        cost = None if self.cost is None else asdict(self.cost)
        write(path, tensors, {"about": json.dumps({**facts, "cost": cost})})

    @classmethod
    def load(cls, path: Path, keys: tuple[SaeKey, ...]) -> Synchronised | None:
        """Read a whole-model match; None if the file is missing or damaged."""
        tensors = read(path)
        if tensors is None:
            return None
        cost = json.loads(read_facts(path)["about"])["cost"]
        return cls(keys, **tensors, cost=None if cost is None else Cost(**cost))


def _composed(steps: Sequence[Match]) -> Int64[Tensor, "layers F"]:
    """Return the first layer's feature that each feature continues."""
    classes = [torch.arange(steps[0].n_source)]
    for step in steps:
        classes.append(torch.empty_like(classes[-1]).index_copy_(0, step.columns, classes[-1]))
    return torch.stack(classes)


def _scores(compared: Factors, columns: Int64[Tensor, " F"]) -> Float64[Tensor, " F"]:
    return pair_scores(compared, Match.from_columns(columns, len(columns)))


def _norms(compared: Factors, columns: Int64[Tensor, " F"]) -> Float64[Tensor, " F"]:
    """Return the products of the lengths of paired vectors; 1 where one of them is 0."""
    own, other = (torch.linalg.vector_norm(side, dim=1) for side in (compared.X_A, compared.X_B))
    norms = own.double() * other.double()[columns]
    return torch.where(norms > 0, norms, 1.0)


def _confidence(
    classes: Int64[Tensor, "layers F"], direct: Callable[[int, int], Match]
) -> Float64[Tensor, "layers F"]:
    """Return the share of the direct matches with near layers that agree, for each feature."""
    agreed = torch.zeros(classes.shape, dtype=torch.float64)
    count = torch.zeros(len(classes), 1, dtype=torch.float64)
    for source in range(len(classes)):
        for target in range(source + 1, min(source + 1 + FARTHEST, len(classes))):
            partners = direct(source, target).columns
            agree = (classes[target][partners] == classes[source]).double()
            agreed[source] += agree
            agreed[target][partners] += agree
            count[[source, target]] += 1
    return agreed / count

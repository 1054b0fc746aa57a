"""Choice among a release's SAEs: one or several suites, each with one SAE per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import DEFAULT
from saematch.core.specs import NotNegative, spec
from saematch.sae.params import SaeParams
from saematch.sae.sources.source import SaeOffer, SaeSource, ZooSaes

SIMILAR = "similar"


@runtime_checkable
class Selection(Protocol):
    """Protocol of every selection."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the suites by name; ``InputError`` if the release offers no choice."""
        ...


@dataclass(frozen=True)
class Chosen:
    """Suite with a separate source for each layer."""

    name: str
    by_layer: Mapping[int, SaeSource]

    def layers(self) -> list[int]:
        """Return the layers of the suite."""
        return sorted(self.by_layer)

    def load(self, layer: int) -> SaeParams:
        """Load one layer's SAE."""
        return self.by_layer[layer].load(layer)

    def truth(self, source: int, target: int) -> Match | None:
        """Return the true match if both layers have the same source, and None otherwise."""
        first, second = self.by_layer[source], self.by_layer[target]
        return first.truth(source, target) if first == second else None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return all SAEs among which the layer's SAE was chosen."""
        return self.by_layer[layer].offers(layer)


def zoo_by_layer(family: str, width: int, sparsities: Sequence[int]) -> Chosen:
    """Return embedded SAEs whose sparsity differs between layers, as in released suites."""
    by_layer = {n: ZooSaes(family, width, sparsity) for n, sparsity in enumerate(sparsities)}
    return Chosen(f"{family}/width_{width}/l0_{'-'.join(map(str, sparsities))}", by_layer)


@spec("selection")
class AsReleased:
    """Spec: the release's own suite."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the only suite."""
        return {DEFAULT: source}


@spec("selection")
class EverySparsity:
    """Spec: one suite for each mean L0 that the release offers (paper, figure 14).

    Each SAE of the layer with the fewest SAEs starts a suite. The other layers add the SAE whose
    mean L0 is nearest by ratio.
    """

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the suites, sorted by mean L0."""
        offers = _offers(source, layers)
        fewest = min(offers.values(), key=len)
        suites: dict[str, SaeSource] = {}
        for first in fewest:
            chosen = {
                layer: min(of_layer, key=lambda o: abs(math.log(o.mean_l0 / first.mean_l0))).source
                for layer, of_layer in offers.items()
            }
            name = f"l0_{first.mean_l0:.0f}"
            if name in suites:
                raise InputError(f"{source.name} has two SAEs of mean L0 {first.mean_l0:.0f}")
            suites[name] = Chosen(f"{source.name} at {name}", chosen)
        return suites


@spec("selection")
class SimilarL0:
    """Spec: the release's own suite, and the suite whose mean L0 changes least between layers.

    The second suite minimises the sum of ``|L0(t+1) - L0(t)|`` over all choices of one SAE per
    layer (paper, figure 15, which chose the SAEs by hand).
    """

    min_l0: NotNegative = 0.0
    """Lowest mean L0 of an SAE in the second suite."""
    max_l0: NotNegative | None = None
    """Highest mean L0 of an SAE in the second suite; None for no limit."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return both suites."""
        offers = {
            layer: [o for o in of_layer if self.min_l0 <= o.mean_l0 <= (self.max_l0 or math.inf)]
            for layer, of_layer in _offers(source, layers).items()
        }
        empty = [layer for layer, of_layer in offers.items() if not of_layer]
        if empty:
            raise InputError(
                f"layer {empty[0]} of {source.name} has no SAE with a mean L0 of at "
                f"least {self.min_l0} and at most {self.max_l0}; change selection.min_l0 or max_l0"
            )
        chain = least_change([[o.mean_l0 for o in of_layer] for of_layer in offers.values()])
        chosen = {
            layer: of_layer[pick].source
            for (layer, of_layer), pick in zip(offers.items(), chain, strict=True)
        }
        return {DEFAULT: source, SIMILAR: Chosen(f"{source.name} of similar L0", chosen)}


def least_change(values: Sequence[Sequence[float]]) -> list[int]:
    """Choose one value per list so that the sum of absolute changes between lists is least.

    Dynamic programming over the least sum that ends in each value. Returns the index of each
    choice; equal sums choose the lowest indices.
    """
    cost, origins = [0.0] * len(values[0]), []
    for before, now in pairwise(values):
        reach = [[cost[i] + abs(b - n) for i, b in enumerate(before)] for n in now]
        origins.append([sums.index(min(sums)) for sums in reach])
        cost = [min(sums) for sums in reach]
    chain = [cost.index(min(cost))]
    for origin in reversed(origins):
        chain.append(origin[chain[-1]])
    return chain[::-1]


def _offers(source: SaeSource, layers: Sequence[int]) -> dict[int, list[SaeOffer]]:
    offers = {layer: source.offers(layer) for layer in layers}
    if max(map(len, offers.values())) < 2:
        raise InputError(
            f"{source.name} has one SAE per layer, so there is no mean L0 to choose; use a release "
            "with several, such as sae=independent"
        )
    return offers

"""Which of a release's SAEs a run takes, as one or several sets of one SAE a layer."""

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
    """What every way of selecting offers."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the suites by name; ``InputError`` if the release has no choice."""
        ...


@dataclass(frozen=True)
class Chosen:
    """One SAE a layer, each from a source of its own."""

    name: str
    by_layer: Mapping[int, SaeSource]

    def layers(self) -> list[int]:
        """Return the layers that were chosen for."""
        return sorted(self.by_layer)

    def load(self, layer: int) -> SaeParams:
        """Load one layer's SAE."""
        return self.by_layer[layer].load(layer)

    def truth(self, source: int, target: int) -> Match | None:
        """Return the known match where both layers come from one source."""
        one, other = self.by_layer[source], self.by_layer[target]
        return one.truth(source, target) if one == other else None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return all that the chosen SAE was chosen from."""
        return self.by_layer[layer].offers(layer)


def zoo_by_layer(family: str, width: int, sparsities: Sequence[int]) -> Chosen:
    """Return embedded SAEs of another sparsity at each layer, as releases have them."""
    by_layer = {n: ZooSaes(family, width, sparsity) for n, sparsity in enumerate(sparsities)}
    return Chosen(f"{family}/width_{width}/l0_{'-'.join(map(str, sparsities))}", by_layer)


@spec("selection")
class AsReleased:
    """Spec: the release's own set."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the one set."""
        return {DEFAULT: source}


@spec("selection")
class EverySparsity:
    """Spec: one set for each mean L0 that the release offers (paper, figure 14).

    The layer with the fewest SAEs makes the sets; the other layers join with the SAE whose mean L0
    is nearest, by ratio.
    """

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return the sets, by rising mean L0."""
        offers = _offers(source, layers)
        fewest = min(offers.values(), key=len)
        sets: dict[str, SaeSource] = {}
        for wanted in fewest:
            chosen = {
                layer: min(of_layer, key=lambda o: abs(math.log(o.mean_l0 / wanted.mean_l0))).source
                for layer, of_layer in offers.items()
            }
            name = f"l0_{wanted.mean_l0:.0f}"
            if name in sets:
                raise InputError(f"{source.name} has two SAEs of mean L0 {wanted.mean_l0:.0f}")
            sets[name] = Chosen(f"{source.name} at {name}", chosen)
        return sets


@spec("selection")
class SimilarL0:
    """Spec: the release's own set, and the set whose mean L0 changes least from layer to layer.

    The second is the chain of SAEs, one a layer, with the least sum of ``|L0(t+1) - L0(t)|`` over
    everything that the release offers (paper, figure 15, where it was picked by hand).
    """

    min_l0: NotNegative = 0.0
    """SAEs below this mean L0 are not taken."""
    max_l0: NotNegative | None = None
    """SAEs above this mean L0 are not taken."""

    def __call__(self, source: SaeSource, layers: Sequence[int]) -> dict[str, SaeSource]:
        """Return both sets."""
        offers = {
            layer: [o for o in of_layer if self.min_l0 <= o.mean_l0 <= (self.max_l0 or math.inf)]
            for layer, of_layer in _offers(source, layers).items()
        }
        empty = [layer for layer, of_layer in offers.items() if not of_layer]
        if empty:
            raise InputError(
                f"layer {empty[0]} of {source.name} has no SAE with a mean L0 of at "
                f"least {self.min_l0} and at most {self.max_l0}; widen selection.min_l0 or max_l0"
            )
        chain = least_change([[o.mean_l0 for o in of_layer] for of_layer in offers.values()])
        chosen = {
            layer: of_layer[pick].source
            for (layer, of_layer), pick in zip(offers.items(), chain, strict=True)
        }
        return {DEFAULT: source, SIMILAR: Chosen(f"{source.name} of similar L0", chosen)}


def least_change(values: Sequence[Sequence[float]]) -> list[int]:
    """Choose one value of each list so that the sum of changes from list to list is least.

    Dynamic programming: the least sum that ends in each value, from list to list. Returns the place
    of each choice; of equal sums, the first places.
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
            f"{source.name} has one SAE a layer, so there is no mean L0 to choose; take a release "
            "with several, such as sae=independent"
        )
    return offers

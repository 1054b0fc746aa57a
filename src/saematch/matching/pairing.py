"""Pairings: which SAEs of a run's suites and layers are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.pairs import DEFAULT, Pair, SaeKey
from saematch.core.specs import AtLeast1, Some, Text, spec

Layers = Mapping[str, Sequence[int]]
"""Layers of each suite, in rising order."""


@runtime_checkable
class Pairing(Protocol):
    """Interface of a pairing."""

    @property
    def chains(self) -> bool:
        """Whether each pair starts at the target of the previous pair, so that paths exist."""
        ...

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs; ``InputError`` if there are none, or a layer or suite is missing."""
        ...


@spec("pairing")
class Neighbours:
    """Spec: each layer and later ones, by default the next one, in each suite."""

    distances: Some[AtLeast1] = (1,)
    """Numbers of steps from the source to the target along the layers that have an SAE."""

    @property
    def chains(self) -> bool:
        """Whether all pairs are of neighbouring layers."""
        return tuple(self.distances) == (1,)

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs, suite by suite, the smallest distance first."""
        pairs = [
            Pair(SaeKey(suite, source), SaeKey(suite, target))
            for suite, of_suite in layers.items()
            for distance in sorted(self.distances)
            for source, target in zip(of_suite, of_suite[distance:], strict=False)
        ]
        if not pairs:
            all_layers = sorted({layer for of_suite in layers.values() for layer in of_suite})
            least = min(self.distances)
            needed = "neighbouring layers need at least two"
            if least > 1:
                needed = f"pairs at a distance of {least} need at least {least + 1}"
            raise InputError(
                f"layers={all_layers}: {needed} layers in a suite; use pairing=same_layer to "
                "compare SAEs of one layer"
            )
        return tuple(pairs)


@spec("pairing")
class FromStarts:
    """Spec: given layers and the layers after them, in each suite."""

    chains: ClassVar[bool] = False

    starts: Some[int]
    """Source layers."""
    reach: AtLeast1 | None = None
    """Number of later layers that are targets; None for all."""

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs, suite by suite."""
        pairs = []
        for suite, of_suite in layers.items():
            for start in sorted(self.starts):
                if start not in of_suite[:-1]:
                    raise InputError(
                        f"pairing.starts={list(self.starts)}: {start} must be one of the layers "
                        f"{list(of_suite)}, but not the last"
                    )
                first = of_suite.index(start) + 1
                last = len(of_suite) if self.reach is None else first + self.reach
                source = SaeKey(suite, start)
                pairs += [Pair(source, SaeKey(suite, layer)) for layer in of_suite[first:last]]
        return tuple(pairs)


@spec("pairing")
class SameLayer:
    """Spec: the SAEs of two suites in each layer that both have."""

    chains: ClassVar[bool] = False

    source: Text = DEFAULT
    """Suite of the source SAEs."""
    target: Text = DEFAULT
    """Suite of the target SAEs."""

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs in the order of their layers."""
        for field in ("source", "target"):
            name = getattr(self, field)
            if name not in layers:
                raise InputError(
                    f"pairing.{field}={name}: there is no such suite; the suites are "
                    f"{', '.join(layers)}"
                )
        if self.source == self.target:
            raise InputError(
                f"pairing.source and pairing.target are both {self.source}: choose two of the "
                f"suites {', '.join(layers)}; add a suite with +sae@suites.NAME=PRESET"
            )
        shared = [layer for layer in layers[self.source] if layer in layers[self.target]]
        if not shared:
            raise InputError(
                f"the suites {self.source} (layers {_listed(layers[self.source])}) and "
                f"{self.target} (layers {_listed(layers[self.target])}) share no layer: list pairs "
                "with pairing=listed"
            )
        return tuple(Pair(SaeKey(self.source, n), SaeKey(self.target, n)) for n in shared)


@spec("pairing")
class Listed:
    """Spec: a list of pairs."""

    chains: ClassVar[bool] = False

    pairs: Some[str]
    """Pairs ``source:target``; an SAE is a layer, or ``suite/layer`` outside the default suite."""

    def __post_init__(self) -> None:
        for text in self.pairs:
            _parsed(text)

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs in the given order."""
        given: dict[Pair, str] = {}
        for text in self.pairs:
            if (pair := _parsed(text)) in given:
                raise InputError(
                    f"pairing.pairs: {given[pair]} and {text} are the same pair: list it once"
                )
            given[pair] = text
        for pair in given:
            for key in pair:
                if key.layer not in layers.get(key.suite, ()):
                    suites = "; ".join(
                        f"{name}: {_listed(of_suite)}" for name, of_suite in layers.items()
                    )
                    raise InputError(
                        f"pairing.pairs: there is no SAE {key.suite}/{key.layer}; the layers of "
                        f"each suite are {suites}"
                    )
            if pair.source == pair.target:
                raise InputError(f"pairing.pairs: {key.suite}/{key.layer} is paired with itself")
        return tuple(given)


def _parsed(text: str) -> Pair:
    end = r"(?:([A-Za-z0-9_][\w.-]*)/)?(\d+)"
    ends = re.fullmatch(f"{end}:{end}", text)
    if not ends:
        raise InputError(
            f"pairing.pairs holds {text!r}: a pair is source:target, each a layer or suite/layer, "
            "as in 3:5 or default/4:wide/4"
        )
    source, target = (SaeKey(ends[n] or DEFAULT, int(ends[n + 1])) for n in (1, 3))
    return Pair(source, target)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"

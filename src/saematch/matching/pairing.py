"""Pairings: how the pairs of a run are laid out over its suites and layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.pairs import DEFAULT, Pair, SaeKey
from saematch.core.specs import AtLeast1, Some, Text, spec

Layers = Mapping[str, Sequence[int]]
"""The layers of each suite, in rising order."""


@runtime_checkable
class Pairing(Protocol):
    """What every pairing offers."""

    chains: ClassVar[bool]
    """Whether a pair begins where the pair before it ends, so that features can be followed."""

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs of a run; ``InputError`` if there is none, or a layer or suite lacks."""
        ...


@spec("pairing")
class Neighbours:
    """Spec: in each suite, each layer with the next."""

    chains: ClassVar[bool] = True

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs, suite by suite."""
        pairs = [
            Pair(SaeKey(suite, source), SaeKey(suite, target))
            for suite, of_suite in layers.items()
            for source, target in pairwise(of_suite)
        ]
        if not pairs:
            every = sorted({layer for of_suite in layers.values() for layer in of_suite})
            raise InputError(
                f"layers={every}: neighbouring layers need at least two layers in a suite; SAEs of "
                "one layer are compared by pairing=same_layer"
            )
        return tuple(pairs)


@spec("pairing")
class FromStarts:
    """Spec: in each suite, each of some layers with later ones."""

    chains: ClassVar[bool] = False

    starts: Some[int]
    """The source layers."""
    reach: AtLeast1 | None = None
    """How many of the later layers are targets; None for all."""

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs, suite by suite."""
        pairs = []
        for suite, of_suite in layers.items():
            for start in sorted(self.starts):
                if start not in of_suite[:-1]:
                    raise InputError(
                        f"pairing.starts={list(self.starts)}: {start} is none of the layers "
                        f"{list(of_suite)}, or the last"
                    )
                first = of_suite.index(start) + 1
                last = len(of_suite) if self.reach is None else first + self.reach
                source = SaeKey(suite, start)
                pairs += [Pair(source, SaeKey(suite, layer)) for layer in of_suite[first:last]]
        return tuple(pairs)


@spec("pairing")
class SameLayer:
    """Spec: the SAEs of two suites at each layer that both have."""

    chains: ClassVar[bool] = False

    source: Text = DEFAULT
    """Suite of the sources."""
    target: Text = DEFAULT
    """Suite of the targets."""

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs by rising layer."""
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
                f"suites {', '.join(layers)}; another one is added by +sae@suites.NAME=PRESET"
            )
        shared = [layer for layer in layers[self.source] if layer in layers[self.target]]
        if not shared:
            raise InputError(
                f"the suites {self.source} (layers {_listed(layers[self.source])}) and "
                f"{self.target} (layers {_listed(layers[self.target])}) share no layer: list pairs "
                "by pairing=listed"
            )
        return tuple(Pair(SaeKey(self.source, n), SaeKey(self.target, n)) for n in shared)


@spec("pairing")
class Listed:
    """Spec: pairs that are given one by one."""

    chains: ClassVar[bool] = False

    pairs: Some[str]
    """Each ``source:target``; an SAE is its layer, or ``suite/layer`` outside the default suite."""

    def __post_init__(self) -> None:
        for text in self.pairs:
            _parsed(text)

    def __call__(self, layers: Layers) -> tuple[Pair, ...]:
        """Return the pairs in the order in which they are given."""
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
                    there = "; ".join(f"{name}: {_listed(some)}" for name, some in layers.items())
                    raise InputError(
                        f"pairing.pairs: there is no SAE {key.suite}/{key.layer}; the layers of "
                        f"each suite are {there}"
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

"""Parts of a run over which the leaderboard takes means: all pairs, depths, distances, pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from saematch.core.pairs import Pair
from saematch.core.tables import Row
from saematch.evaluate.evaluation import Subject

DEPTHS = ("early", "middle", "late")


class Part(NamedTuple):
    """Some of the pairs of a run."""

    suites: str
    by: str
    """``all``, ``depth``, ``distance``, ``pair``, or ``stratum`` (of activity)."""
    part: str
    """Name of the part: a depth, number of layers, stratum, or pair of layers."""
    pairs: frozenset[Pair]

    def columns(self) -> Row:
        """Return the key columns of the part."""
        return {"suites": self.suites, "by": self.by, "part": self.part}


def distance(pair: Pair) -> int:
    """Return the number of layers from the source to the target."""
    return abs(pair.target.layer - pair.source.layer)


def depth(pair: Pair, subject: Subject) -> str:
    """Return the third of the suite's layers that has the source layer."""
    layers = sorted(k.layer for k in subject.saes.facts if k.suite == pair.source.suite)
    return DEPTHS[len(DEPTHS) * layers.index(pair.source.layer) // len(layers)]


def parts_of(subject: Subject) -> Iterator[Part]:
    """Yield the parts of a run, for each pair of suites.

    Depths have only the pairs of the smallest distance, since few layers start a longer pair.
    """
    pairs = subject.matches.pairs
    for suites in dict.fromkeys(pair.suites for pair in pairs):
        of_suites = [pair for pair in pairs if pair.suites == suites]
        yield Part(suites, "all", "all", frozenset(of_suites))
        distances = sorted({distance(pair) for pair in of_suites})
        nearest = [pair for pair in of_suites if distance(pair) == distances[0]]
        for name in DEPTHS:
            chosen = frozenset(pair for pair in nearest if depth(pair, subject) == name)
            if chosen:
                yield Part(suites, "depth", name, chosen)
        for number in distances:
            chosen = frozenset(pair for pair in of_suites if distance(pair) == number)
            yield Part(suites, "distance", str(number), chosen)
        for pair in of_suites:
            layers = f"{pair.source.layer}→{pair.target.layer}"
            yield Part(suites, "pair", layers, frozenset([pair]))

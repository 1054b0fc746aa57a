"""Paths of features through the SAEs of a run: the best partner in each next SAE."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.links import N_PARTNERS, Links, partners, sources
from saematch.explorer.run_data import RunData


class Node(NamedTuple):
    """A feature of an SAE."""

    key: SaeKey
    feature: int

    @property
    def name(self) -> str:
        """Name on pages and in exports: ``7/42``, or ``wide/7/42`` outside the default suite."""
        return f"{self.key.label}/{self.feature}"


class Link(NamedTuple):
    """An entry of a match."""

    source: Node
    target: Node
    weight: float
    score: float | None
    """None if the match has no scores."""

    @property
    def pair(self) -> Pair:
        """Pair of SAEs that the link belongs to."""
        return Pair(self.source.key, self.target.key)


class Paths:
    """Links and paths of the features of a run under one arm; matches are read once."""

    def __init__(self, run: RunData, arm: str) -> None:
        self.run = run
        self.arm = arm
        self.pairs = [pair for pair in run.pairs if (arm, pair) in run.matched]
        self._links: dict[tuple[Pair, bool], Links] = {}

    def partners(self, pair: Pair, feature: int) -> list[Link]:
        """Return the links of a source feature in a pair, the best first."""
        return self._of(pair, feature, forward=True)

    def sources(self, pair: Pair, feature: int) -> list[Link]:
        """Return the links of a target feature in a pair, the best first."""
        return self._of(pair, feature, forward=False)

    def path(self, start: Node) -> list[Link]:
        """Return the links of the path through a feature, from the first SAE to the last.

        Forward, the path goes to the best partner in the next SAE until a feature has no partner;
        backward, it goes to the best source. Consecutive links share a feature. The next SAE is the
        nearest higher layer of the same suite, or the nearest lower layer in a suite that the run
        follows only downwards. A path changes the suite only where the arm matched no pair within
        the suite. No SAE is visited twice. This definition is ours.
        """
        visited = {start.key}
        forward = self._walk(start, visited, forward=True)
        return [*reversed(self._walk(start, visited, forward=False)), *forward]

    def next_pair(self, key: SaeKey, forward: bool, without: set[SaeKey]) -> Pair | None:
        """Return the pair that a path takes from an SAE, to none of the SAEs in ``without``."""
        of_suite = [pair for pair in self.pairs if key.suite in (p.suite for p in pair)]
        kind = min(map(_kind, of_suite), default=None)
        here, there = (0, 1) if forward else (1, 0)
        steps = [
            pair
            for pair in of_suite
            if _kind(pair) == kind and pair[here] == key and pair[there] not in without
        ]
        return min(steps, key=lambda pair: abs(_distance(pair)), default=None)

    def _walk(self, node: Node, visited: set[SaeKey], forward: bool) -> list[Link]:
        links: list[Link] = []
        while pair := self.next_pair(node.key, forward, visited):
            of_node = self._of(pair, node.feature, forward)
            if not of_node:
                break
            links.append(of_node[0])
            node = of_node[0].target if forward else of_node[0].source
            visited.add(node.key)
        return links

    def _of(self, pair: Pair, feature: int, forward: bool) -> list[Link]:
        links = self._sorted(pair, forward)
        if links is None:
            return []
        entries = range(links.starts[feature], links.starts[feature + 1])
        return [self._link(pair, feature, links, entry, forward) for entry in entries]

    def _link(self, pair: Pair, feature: int, links: Links, entry: int, forward: bool) -> Link:
        other = int(links.others[entry])
        source, target = (feature, other) if forward else (other, feature)
        score = None if links.scores is None else float(links.scores[entry])
        return Link(
            Node(pair.source, source), Node(pair.target, target), float(links.weights[entry]), score
        )

    def _sorted(self, pair: Pair, forward: bool) -> Links | None:
        if (pair, forward) not in self._links:
            match = self.run.match(self.arm, pair)
            if match is None:
                return None
            sort: Callable[[Match, int], Links] = partners if forward else sources
            self._links[pair, forward] = sort(match, N_PARTNERS)
        return self._links[pair, forward]


def nodes_of(start: Node, links: Sequence[Link]) -> list[Node]:
    """Return the features of a path, from the first SAE to the last."""
    return [links[0].source, *(link.target for link in links)] if links else [start]


def parse_node(run: RunData, text: str) -> Node:
    """Return the feature that ``7/42`` or ``wide/7/42`` names.

    Raises ``InputError`` for text of another form, and for a feature that the run does not have.
    """
    parts = re.fullmatch(r"(?:(.+)/)?(\d{1,9})/(\d{1,9})", text)
    if parts is None:
        raise InputError(f"{text!r:.80} is not a feature: write LAYER/FEATURE, such as 7/42")
    suite, layer, feature = parts.groups()
    key = run.sae(int(layer), suite)
    run.check_feature(key, int(feature))
    return Node(key, int(feature))


def _distance(pair: Pair) -> int:
    return pair.target.layer - pair.source.layer


def _kind(pair: Pair) -> int:
    """Return the rank of a pair among those that a path may take; the lowest rank counts."""
    if not pair.within_suite:
        return 2
    return 0 if _distance(pair) > 0 else 1

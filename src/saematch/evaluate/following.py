"""Follow features from match to match."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from saematch.core.match import Match

BREADTH = 5
"""Features that a path holds at a layer unless a spec says otherwise."""

Held = Mapping[int, Mapping[int, float]]
"""Path -> features of one layer that it holds -> share of the path's first activation in each."""


class Step(NamedTuple):
    """One entry of a match that leaves a feature held by a path."""

    path: int
    entry: int
    """Position among the entries of the match."""
    source_feature: int
    target_feature: int
    weight: float
    """Weight of the entry."""
    path_weight: float
    """What of the path's first activation arrives through the entry."""
    dropped_mass: float
    """Share of what the path's step carries (sum of absolute weights) that it does not hold on to,
    the same for all entries of the step."""


class Followed(NamedTuple):
    """One step of all paths."""

    steps: list[Step]
    """Sorted by path, then by source and target feature."""
    held: Held
    """What paths hold at the target; a path that ended is left out."""


def begin(features: Iterable[int]) -> Held:
    """Return one path for each feature, numbered in their order."""
    return {path: {feature: 1.0} for path, feature in enumerate(features)}


def follow(held: Held, match: Match, breadth: int) -> Followed:
    """Follow each path through a match to at most ``breadth`` features of the target.

    The features that receive the largest absolute weight are held, of equal ones the first. A path
    ends where none of its features has an entry.
    """
    steps: list[Step] = []
    there: dict[int, Mapping[int, float]] = {}
    for path, features in held.items():
        left = [step for feature in sorted(features)
                for step in _leaving(path, feature, features[feature], match)]  # fmt: skip
        if not left:
            continue
        arrived: dict[int, float] = defaultdict(float)
        for step in left:
            arrived[step.target_feature] += step.path_weight
        largest = sorted(arrived, key=lambda feature: (-abs(arrived[feature]), feature))
        there[path] = {feature: arrived[feature] for feature in largest[:breadth]}
        lost = sum(abs(arrived[feature]) for feature in largest[breadth:])
        mass = sum(map(abs, arrived.values()))
        dropped = lost / mass if mass else 0.0
        steps += [step._replace(dropped_mass=dropped) for step in left]
    return Followed(steps, there)


def _leaving(path: int, feature: int, held: float, match: Match) -> list[Step]:
    ends = torch.searchsorted(match.rows, torch.tensor([feature, feature + 1])).tolist()
    entries = slice(*ends)
    each = zip(
        range(*ends), match.columns[entries].tolist(), match.weights[entries].tolist(), strict=True
    )
    return [Step(path, n, feature, column, w, held * w, 0.0) for n, column, w in each]

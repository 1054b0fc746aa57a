"""Follow features from match to match."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from saematch.core.match import Match

BREADTH = 5
"""Default number of features of a path at a layer."""

Fronts = Mapping[int, Mapping[int, float]]
"""By path: its features at one layer, each with its share of the path's first activation."""


class Step(NamedTuple):
    """One entry of a match whose source feature belongs to a path."""

    path: int
    entry: int
    """Position among the entries of the match."""
    source_feature: int
    target_feature: int
    weight: float
    """Weight of the entry."""
    path_weight: float
    """Share of the path's first activation that arrives through the entry."""
    dropped_mass: float
    """Share of the mass (sum of absolute weights) that arrives at features which the path drops;
    the same for all entries of the path's step."""


class Followed(NamedTuple):
    """One step of all paths."""

    steps: list[Step]
    """Sorted by path, then by source and target feature."""
    fronts: Fronts
    """Features of the paths at the target, without paths that ended."""


def begin(features: Iterable[int]) -> Fronts:
    """Return one path for each feature, numbered in their order."""
    return {path: {feature: 1.0} for path, feature in enumerate(features)}


def follow(fronts: Fronts, match: Match, breadth: int) -> Followed:
    """Follow each path through a match to at most ``breadth`` features of the target.

    A path keeps the features that receive the largest absolute weight; ties go to the first
    feature. A path ends where none of its features has an entry.
    """
    steps: list[Step] = []
    targets: dict[int, Mapping[int, float]] = {}
    for path, features in fronts.items():
        entries = [step for feature in sorted(features)
                   for step in _steps_from(path, feature, features[feature], match)]  # fmt: skip
        if not entries:
            continue
        arrived: dict[int, float] = defaultdict(float)
        for step in entries:
            arrived[step.target_feature] += step.path_weight
        largest = sorted(arrived, key=lambda feature: (-abs(arrived[feature]), feature))
        targets[path] = {feature: arrived[feature] for feature in largest[:breadth]}
        lost = sum(abs(arrived[feature]) for feature in largest[breadth:])
        mass = sum(map(abs, arrived.values()))
        dropped = lost / mass if mass else 0.0
        steps += [step._replace(dropped_mass=dropped) for step in entries]
    return Followed(steps, targets)


def _steps_from(path: int, feature: int, share: float, match: Match) -> list[Step]:
    ends = torch.searchsorted(match.rows, torch.tensor([feature, feature + 1])).tolist()
    entries = slice(*ends)
    columns, weights = match.columns[entries].tolist(), match.weights[entries].tolist()
    return [
        Step(path, n, feature, column, weight, share * weight, 0.0)
        for n, column, weight in zip(range(*ends), columns, weights, strict=True)
    ]

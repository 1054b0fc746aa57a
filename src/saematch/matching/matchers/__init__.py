"""Assignments: from a pair of factor matrices to a match, one file an algorithm."""

from typing import Protocol, runtime_checkable

from saematch.core.match import Match
from saematch.matching.levels import ChanceLevel
from saematch.matching.matchers.baselines import Identity, Random
from saematch.matching.matchers.nearest import Greedy, MutualNearest
from saematch.matching.matchers.optimal import Optimal
from saematch.matching.matchers.scipy_dense import Scipy
from saematch.matching.objectives.factors import Factors


@runtime_checkable
class Assignment(Protocol):
    """What every algorithm offers."""

    def __call__(self, factors: Factors) -> Match:
        """Match the features of two layers."""
        ...


__all__ = [
    "Assignment",
    "ChanceLevel",
    "Greedy",
    "Identity",
    "MutualNearest",
    "Optimal",
    "Random",
    "Scipy",
]

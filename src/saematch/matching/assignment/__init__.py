"""Assignments: from a pair of factor matrices to a match, one file an algorithm."""

from typing import Protocol, runtime_checkable

from saematch.matching.assignment.baselines import Identity, Random
from saematch.matching.assignment.nearest import Greedy, MutualNearest
from saematch.matching.assignment.optimal import Optimal
from saematch.matching.assignment.scipy_dense import Scipy
from saematch.matching.levels import ChanceLevel
from saematch.matching.match import Match
from saematch.matching.objectives import Factors


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

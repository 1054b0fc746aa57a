"""Assignments: from a pair of factor matrices to a match, one file an algorithm."""

from typing import Protocol

from saematch.matching.assignment.baselines import Identity, Random
from saematch.matching.assignment.exact import Exact
from saematch.matching.match import Match
from saematch.matching.objectives import Factors


class Assignment(Protocol):
    """What every algorithm offers."""

    def __call__(self, factors: Factors) -> Match: ...


__all__ = ["Assignment", "Exact", "Identity", "Random"]

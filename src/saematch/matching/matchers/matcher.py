"""Interfaces of matchers."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from saematch.core.match import Match
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors


@runtime_checkable
class Matcher(Protocol):
    """Interface of a matching algorithm."""

    one_partner: ClassVar[bool]
    """Whether no source feature ever has several partners."""

    def __call__(self, factors: Factors) -> Match:
        """Return the match of source and target, ``[len(X_A), len(X_B)]``, with finite weights."""
        ...


@runtime_checkable
class CandidateMatcher(Protocol):
    """Interface of a matching algorithm that also takes candidate pairs (``ActivityObjective``)."""

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match of source and target from the scores of some pairs of features."""
        ...

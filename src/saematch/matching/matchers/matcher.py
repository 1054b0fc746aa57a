"""Interfaces of matchers."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from saematch.core.errors import InputError
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
    """Interface of a matching algorithm that also takes candidate pairs of features."""

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match of source and target from the scores of some pairs of features."""
        ...


@runtime_checkable
class SelectiveMatcher(Protocol):
    """Interface of a ``CandidateMatcher`` that takes candidates with some of its settings only."""

    def candidate_refusal(self) -> str | None:
        """Return why these settings need the similarity of all pairs, None if they do not."""
        ...


@runtime_checkable
class WidthBoundMatcher(Protocol):
    """Interface of a matching algorithm whose settings need a target of some width."""

    def width_refusal(self, n_target: int) -> str | None:
        """Return why a target has too few features, None if it has enough."""
        ...


@runtime_checkable
class PositiveMatcher(Protocol):
    """Interface of a matching algorithm that may make no pair without a positive similarity."""

    @property
    def needs_positive(self) -> bool:
        """Whether these settings match only pairs of positive similarity."""
        ...


@runtime_checkable
class CompleteMatcher(Protocol):
    """Interface of a matching algorithm that can make permutations."""

    @property
    def complete(self) -> bool:
        """Whether these settings give SAEs of equal width a permutation."""
        ...


def refuse_candidates(matcher: SelectiveMatcher) -> None:
    """Raise ``InputError`` if the matcher's settings need the similarity of all pairs."""
    reason = matcher.candidate_refusal()
    if reason is not None:
        raise InputError(f"{type(matcher).__name__} cannot match candidates: {reason}")


def refuse_width(matcher: WidthBoundMatcher, n_target: int) -> None:
    """Raise ``InputError`` if the target has too few features for the matcher's settings."""
    reason = matcher.width_refusal(n_target)
    if reason is not None:
        raise InputError(reason)


def k_refusal(k: int, n_target: int) -> str | None:
    """Return why a target has fewer than ``k`` features, None if it has enough."""
    if k <= n_target:
        return None
    return (
        f"matcher.k={k} is more than the {n_target} features of the target SAE: choose at most "
        f"{n_target}"
    )

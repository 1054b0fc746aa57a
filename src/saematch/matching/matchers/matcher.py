"""What every matcher offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saematch.core.match import Match
from saematch.matching.objectives.factors import Factors


@runtime_checkable
class Matcher(Protocol):
    """What every algorithm offers."""

    def __call__(self, factors: Factors) -> Match:
        """Match the features of source and target."""
        ...

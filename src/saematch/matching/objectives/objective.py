"""Interface of an objective."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saematch.matching.objectives.factors import Factors
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@runtime_checkable
class Objective(Protocol):
    """Definition of the similarity of two features."""

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the vectors that represent the features; both SAEs are already folded."""
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs; None if it can."""
        ...

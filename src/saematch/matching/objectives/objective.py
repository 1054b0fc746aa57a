"""What every objective offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saematch.matching.objectives.factors import Factors
from saematch.sae.params import SaeParams
from saematch.sae.suites import SaeFacts


@runtime_checkable
class Objective(Protocol):
    """What makes two features alike."""

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the vectors by which features are compared; both SAEs are folded already."""
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs, None if it can."""
        ...

"""What every objective offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saematch.matching.objectives.factors import Factors
from saematch.sae.params import SaeParams


@runtime_checkable
class Objective(Protocol):
    """What makes two features alike."""

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the vectors by which features are compared; both SAEs are folded already."""
        ...

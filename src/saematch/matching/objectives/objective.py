"""Interfaces of objectives: from weights, from activity on texts, and from explanations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from saematch.core.pairs import Pair
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.feature_texts import FeatureTexts
from saematch.sae.params import SaeParams
from saematch.sae.recorders import Recorder, Recording
from saematch.sae.suites import SaeFacts

Similarity = Factors | Candidates
"""What an objective computes of two SAEs: a vector for each feature, or scored pairs."""


@runtime_checkable
class Objective(Protocol):
    """Definition of the similarity of two features by their weights."""

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return the vectors that represent the features; both SAEs are already folded."""
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs; None if it can."""
        ...


@runtime_checkable
class CandidateObjective(Protocol):
    """Definition of a score, by weights, that only some pairs of features have."""

    def candidates_of(self, source: SaeParams, target: SaeParams) -> Candidates:
        """Return the scored pairs of features; both SAEs are already folded."""
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs; None if it can."""
        ...


@runtime_checkable
class ActivityObjective(Protocol):
    """Definition of a score of two features from their activations on the calibration texts."""

    def recorder(self, folder: Path, pairs: Sequence[Pair]) -> Recorder:
        """Return the recorder for the pass over the calibration texts."""
        ...

    def candidates(
        self, pair: Pair, recording: Recording, source: SaeParams, target: SaeParams
    ) -> Candidates:
        """Return the scored pairs of features; ``pair`` has the keys in the recording.

        Both SAEs are as trained, and so are their activations in the recording. The fold of the arm
        does not apply.
        """
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs; None if it can."""
        ...


@runtime_checkable
class ExplanationObjective(Protocol):
    """Definition of a score of two features from their explanations."""

    def check(self, replies: Path) -> None:
        """Raise ``InputError``, before any work, if the score cannot be computed."""
        ...

    def candidates_of_texts(
        self, source: FeatureTexts, target: FeatureTexts, replies: Path
    ) -> Candidates:
        """Return the scored pairs of features; ``replies`` is the file of stored replies."""
        ...

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return why the objective cannot compare two SAEs; None if it can."""
        ...


AnyObjective = Objective | CandidateObjective | ActivityObjective | ExplanationObjective

"""Evidence: what the objectives of a run read besides the weights of a pair of SAEs."""

from __future__ import annotations

from dataclasses import dataclass, field

from saematch.core.errors import InputError
from saematch.core.pairs import Pair
from saematch.matching.activity import Activity
from saematch.matching.arm import Arm
from saematch.matching.explained import Explained
from saematch.matching.jacobian import Jacobians
from saematch.matching.objectives.objective import (
    ActivityObjective,
    ExplanationObjective,
    Similarity,
)
from saematch.sae.suites import SaeShelf


@dataclass(frozen=True)
class Evidence:
    """What the objectives of a run read besides weights."""

    activity: Activity = field(default_factory=Activity)
    jacobians: Jacobians = field(default_factory=Jacobians)
    explained: Explained | None = None
    """Explanations of the SAEs; None if no objective reads them."""

    def similarity(self, saes: SaeShelf, pair: Pair, arm: Arm) -> Similarity:
        """Return the similarity of two SAEs in an arm."""
        if isinstance(arm.objective, ExplanationObjective):
            texts = self._texts()
            return arm.objective.candidates_of_texts(
                texts.of(pair.source), texts.of(pair.target), texts.replies
            )
        source, target = saes[pair.source], saes[pair.target]
        if isinstance(arm.objective, ActivityObjective):
            recording = self.activity.of(arm)
            return arm.objective.candidates(self.activity.twin(pair), recording, source, target)
        J = self.jacobians.between(pair) if arm.transported else None
        return arm.similarity(source, target, J)

    def identity(self, pair: Pair, arm: Arm) -> list[str]:
        """Return everything that determines the evidence of an arm for a pair, as hashes."""
        if arm.transported:
            return self.jacobians.identity(pair)
        if arm.reads_explanations:
            return [self._texts().of(key).hash for key in pair]
        return self.activity.identity(arm)

    def _texts(self) -> Explained:
        if self.explained is None:
            raise InputError("an objective reads explanations, but this run has none")
        return self.explained

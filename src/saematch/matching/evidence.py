"""Evidence: what the objectives of a run read besides the weights of a pair of SAEs."""

from __future__ import annotations

from dataclasses import dataclass, field

from saematch.core.pairs import Pair
from saematch.matching.activity import Activity
from saematch.matching.arm import Arm
from saematch.matching.jacobian import Jacobians
from saematch.matching.objectives.objective import ActivityObjective, Similarity
from saematch.sae.suites import SaeShelf


@dataclass(frozen=True)
class Evidence:
    """What the objectives of a run read besides weights."""

    activity: Activity = field(default_factory=Activity)
    jacobians: Jacobians = field(default_factory=Jacobians)

    def similarity(self, saes: SaeShelf, pair: Pair, arm: Arm) -> Similarity:
        """Return the similarity of two SAEs in an arm."""
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
        return self.activity.identity(arm)

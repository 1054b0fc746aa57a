"""The explanations that objectives and evaluations compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saematch.core.pairs import SaeKey
from saematch.explain.explanations import Explanations, FeatureKey
from saematch.matching.objectives.feature_texts import FeatureTexts
from saematch.sae.suites import SaeFacts


@dataclass(frozen=True)
class Explained:
    """The explanations of the SAEs of a run; those of an SAE are loaded once."""

    explanations: Explanations
    facts: Mapping[SaeKey, SaeFacts]
    replies: Path
    """File of stored replies of servers."""
    _texts: dict[SaeKey, FeatureTexts] = field(default_factory=dict, init=False, repr=False)

    def of(self, sae: SaeKey) -> FeatureTexts:
        """Return the first explanation of each feature of an SAE that has one.

        If the run's LLM writes the explanations, this asks for those of all active features.
        """
        if sae not in self._texts:
            keys = [FeatureKey(sae, feature) for feature in self.explanations.features(sae)]
            texts = self.explanations.of(keys)
            first = [(key.feature, texts[key][0]) for key in keys if key in texts]
            self._texts[sae] = FeatureTexts(
                torch.tensor([feature for feature, _ in first], dtype=torch.int64),
                tuple(explanation.text for _, explanation in first),
                tuple(explanation.explainer for _, explanation in first),
                self.facts[sae].n_features,
            )
        return self._texts[sae]

"""The explanations of one SAE's features: what objectives from explanations compare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Int64
from torch import Tensor

from saematch.core.files import hashed


@dataclass(frozen=True)
class FeatureTexts:
    """One explanation of each feature that has one."""

    features: Int64[Tensor, " n"]
    """The explained features, in ascending order."""
    texts: tuple[str, ...]
    explainers: tuple[str, ...]
    """Author of each text: the name of a language model, or ``tokens``."""
    n_features: int
    """Number of features of the SAE, with and without explanation."""

    @cached_property
    def hash(self) -> str:
        """Hash of features and texts."""
        return hashed([self.n_features, self.features.tolist(), list(self.texts)])

"""An arm: one named way of matching inside a run."""

from __future__ import annotations

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.specs import Unique, spec
from saematch.matching.matchers.matcher import Matcher
from saematch.matching.objectives.objective import Objective
from saematch.sae.folding import FOLDS, fold
from saematch.sae.params import SaeParams

DECODINGS = {"permute": "threshold", "permute_raw": "decoder_norm"}
"""Strategy of encode-permute-decode -> the fold in which activations go from layer to layer."""


@spec("arms")
class Arm:
    """Fold, objective and matcher, and how the permuted features are decoded.

    Folding matters twice, apart: when the permutation is found (``fold``) and when the permuted
    features are decoded (``decode``).
    """

    fold: str
    """The fold on which the match is found: ``threshold`` or ``decoder_norm``."""
    objective: Objective
    matcher: Matcher
    decode: Unique[str] = ("permute",)
    """Strategies to evaluate: ``permute`` (activations in units of their threshold, eq. 5 on folded
    SAEs), ``permute_raw`` (in units of their decoder vector's norm)."""
    quantiles: Unique[float] = ()
    """Partial matches to evaluate beside the whole one (eq. 6): shares of features, those of the
    least squared error, that are permuted while the others keep their own decoder vector."""
    compose: bool = False
    """Match far layers by composing the matches of the layers between, instead of at once
    (section 3.2)."""

    def __post_init__(self) -> None:
        if self.fold not in FOLDS:
            raise InputError(f"unknown fold {self.fold!r}: choose one of {', '.join(FOLDS)}")
        unknown = [d for d in self.decode if d not in DECODINGS]
        if unknown:
            raise InputError(
                f"unknown strategy {unknown[0]!r} in an arm's decode: choose among "
                f"{', '.join(DECODINGS)}"
            )
        beyond = [q for q in self.quantiles if not 0 <= q <= 1]
        if beyond:
            raise InputError(f"quantile {beyond[0]} of an arm: shares lie between 0 and 1")

    def match(self, source: SaeParams, target: SaeParams) -> Match:
        """Match the features of two layers at once."""
        factors = self.objective.factors(fold(source, self.fold), fold(target, self.fold))
        return self.matcher(factors)

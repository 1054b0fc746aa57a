"""An arm: one named way of matching inside a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from importlib import import_module
from typing import Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.match import InvalidMatch, Match
from saematch.core.specs import AtLeast1, Positive, Unique, brief, spec
from saematch.matching.matchers.matcher import (
    CandidateMatcher,
    CompleteMatcher,
    Matcher,
    SelectiveMatcher,
)
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.objective import (
    ActivityObjective,
    AnyObjective,
    CandidateObjective,
    ExplanationObjective,
    Objective,
    Similarity,
)
from saematch.matching.synchronised import Synchronise
from saematch.matching.transported import transported
from saematch.sae.folding import FOLDS, fold
from saematch.sae.params import SaeParams, check_sae

INCREMENT = "increment"
"""Strategy that adds matched decoder vectors with fitted gains to the copied hidden state."""
DECODINGS = {"permute": "threshold", "permute_raw": "decoder_norm"}
"""Fold in which activations are transported, by strategy of encode-permute-decode."""


def check_decode(decode: Sequence[str], setting: str) -> None:
    """Raise ``InputError`` for an unknown strategy of decoding."""
    strategies = (*DECODINGS, INCREMENT)
    unknown = [strategy for strategy in decode if strategy not in strategies]
    if unknown:
        raise InputError(
            f"unknown strategy {unknown[0]!r} in {setting}: choose among {', '.join(strategies)}"
        )


def _part(module: str, name: str) -> Any:
    """Return a default part of an arm.

    It is imported when it is used: kept files of other arms would else depend on its code.
    """
    return getattr(import_module(f"saematch.matching.{module}"), name)()


@spec("arms")
class Arm:
    """Fold, objective and matcher, and how the permuted features are decoded.

    Folding has two separate effects: on the match that is found (``fold``), and on the decoding of
    the permuted features (``decode``).
    """

    fold: str = "threshold"
    """Fold of the SAEs that are matched: one of ``threshold``, ``decoder_norm`` and ``none``."""
    objective: AnyObjective = field(default_factory=partial(_part, "objectives.parts", "Parts"))
    """What makes two features alike; by default the paper's squared error."""
    matcher: Matcher = field(default_factory=partial(_part, "matchers.optimal", "Optimal"))
    """How features are paired by this similarity; by default the optimal permutation."""
    decode: Unique[str] = ("permute",)
    """Strategies to evaluate: ``permute`` (activations in units of their threshold, eq. 5 on folded
    SAEs), ``permute_raw`` (in units of their decoder vector's norm), ``increment`` (matched decoder
    vectors, with gains fitted to calibration texts, are added to the source's hidden state)."""
    quantiles: Unique[float] = ()
    """Partial matches to evaluate in addition to the whole match (eq. 6): shares of the matched
    features that are transported, those with the smallest squared error. The other features keep
    their own decoder vectors."""
    compose: bool = False
    """Whether to match distant layers by composing the matches of neighbouring layers (section 3.2)
    instead of matching them directly."""
    composed_entries: AtLeast1 = 20
    """Largest number of entries in a row of a composed match; those of largest absolute weight."""
    transported: bool = False
    """Whether an objective of weights compares transported vectors of the source: its decoder
    vectors times the mean Jacobian of the blocks up to the target's layer, on calibration texts
    (``matching.transported``). The vectors are transported before the fold."""
    jacobian_tolerance: Positive = 0.02
    """Relative standard error below which no more tokens are read for a mean Jacobian, if vectors
    are transported."""
    synchronise: Synchronise | None = None
    """Whole-model match: match all layers of a suite at once, so that matches agree over cycles.
    None matches each pair for itself."""

    def __post_init__(self) -> None:
        if self.fold not in FOLDS:
            raise InputError(f"unknown fold {self.fold!r}: choose one of {', '.join(FOLDS)}")
        check_decode(self.decode, "an arm's decode")
        if not isinstance(self.objective, Objective):
            self._check_candidates()
        if self.transported and (self.reads_activity or self.reads_explanations):
            raise InputError(
                f"arms: the objective {type(self.objective).__name__} does not read weights, so it "
                "has no vectors to transport: set transported=false, or choose an objective of "
                "weights"
            )
        if self.synchronise is not None:
            self._check_synchronised()
        beyond = [q for q in self.quantiles if not 0 <= q <= 1]
        if beyond:
            raise InputError(f"quantile {beyond[0]} of an arm: shares lie between 0 and 1")

    def _repr_html_(self) -> str:
        """Return the settings that differ from the defaults, and the main settings, for
        notebooks."""
        settings = {
            "fold": self.fold,
            "objective": brief(self.objective),
            "matcher": brief(self.matcher),
            "decode": ", ".join(self.decode),
        }
        table = pd.DataFrame({"arm": settings}).to_html()
        return f"<p>{html.escape(brief(self))}</p>{table}"

    def _check_candidates(self) -> None:
        """Raise ``InputError`` if the matcher needs the similarity of all pairs."""
        reason: str | None = None
        if not isinstance(self.matcher, CandidateMatcher):
            reason = "choose a matcher that takes candidates, such as TopK"
        elif isinstance(self.matcher, SelectiveMatcher):
            reason = self.matcher.candidate_refusal()
        if reason is not None:
            raise InputError(
                f"arms: the objective {type(self.objective).__name__} scores only candidate pairs "
                f"of features, but the matcher {type(self.matcher).__name__} needs the similarity "
                f"of all pairs: {reason}, or choose an objective with a vector for each feature, "
                "such as Parts; a run may also leave the arm out, as in arms=[folded]"
            )

    def _check_synchronised(self) -> None:
        """Refuse settings that a whole-model match cannot use."""
        if self.compose:
            raise InputError(
                "arms: compose and synchronise are two ways to match distant layers: choose one"
            )
        if self.transported:
            raise InputError(
                "arms: a whole-model match compares the weights as they are: leave out "
                "transported or synchronise"
            )
        if not isinstance(self.objective, Objective):
            raise InputError(
                f"arms: synchronise needs a vector for each feature, but the objective "
                f"{type(self.objective).__name__} scores pairs: choose another, such as Parts"
            )
        if not (isinstance(self.matcher, CompleteMatcher) and self.matcher.complete):
            raise InputError(
                f"arms: synchronise needs permutations, but the matcher is {self.matcher!r}: "
                "choose Optimal without unmatched, or Scipy; to leave features unmatched, set "
                "synchronise.level"
            )

    @property
    def reads_activity(self) -> bool:
        """Whether the objective reads activations on the calibration texts."""
        return isinstance(self.objective, ActivityObjective)

    @property
    def reads_texts(self) -> bool:
        """Whether the arm reads the calibration texts: activations, or Jacobians on them."""
        return self.reads_activity or self.transported

    @property
    def reads_explanations(self) -> bool:
        """Whether the objective reads explanations of features."""
        return isinstance(self.objective, ExplanationObjective)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the arm reads: ``weights``, ``texts``, ``explanations``."""
        if self.reads_explanations:
            return ("explanations",)
        return ("weights", "texts") if self.reads_texts else ("weights",)

    def similarity(
        self,
        source: SaeParams,
        target: SaeParams,
        J: Float64[Tensor, "d_model d_model"] | None = None,
    ) -> Similarity:
        """Return the similarity of two SAEs by their weights.

        An arm with transported vectors needs ``J``, the mean Jacobian of the blocks between. Raises
        ``InputError`` if the arm reads more than it is given.
        """
        is_of_weights = isinstance(self.objective, Objective | CandidateObjective)
        if not is_of_weights or (self.transported and J is None):
            raise InputError(
                f"an arm of {type(self.objective).__name__} that reads {' and '.join(self.reads)} "
                "cannot match SAEs by their weights alone: match in a run, or give Arm.match the "
                "similarity"
            )
        if J is not None and self.transported:
            source = transported(source, J)
        folded = fold(source, self.fold), fold(target, self.fold)
        if isinstance(self.objective, Objective):
            return self.objective.factors(*folded)
        assert isinstance(self.objective, CandidateObjective)
        return self.objective.candidates_of(*folded)

    def match(
        self, source: SaeParams, target: SaeParams, similarity: Similarity | None = None
    ) -> Match:
        """Match the features of two SAEs directly; entries of weight 0 are removed.

        An arm that reads more than weights needs its ``similarity``. Raises ``InputError`` without
        it, and with the matcher's class if the matcher's result breaks its contract.
        """
        check_sae(source, "the source")
        check_sae(target, "the target")
        matcher = type(self.matcher)
        name = f"{matcher.__module__}.{matcher.__qualname__}"
        try:
            match = self._matched(similarity or self.similarity(source, target))
        except InvalidMatch as error:
            raise InputError(f"the matcher {name} made no valid match: {error}") from error
        if not isinstance(match, Match):
            raise InputError(f"the matcher {name} returned {type(match).__name__}, not a Match")
        sizes, expected = (match.n_source, match.n_target), (source.n_features, target.n_features)
        if sizes != expected:
            raise InputError(
                f"the matcher {name} returned a match of {sizes[0]} to {sizes[1]} features for "
                f"SAEs of {expected[0]} and {expected[1]} features"
            )
        if self.matcher.one_partner and not match.one_partner:
            raise InputError(
                f"the matcher {name} gave some features several partners: return one, or "
                "declare one_partner = False in its class"
            )
        if not match.weights.all():  # an entry of weight 0 has no effect
            match = replace(match.keep(match.weights != 0), certificate=match.certificate)
        return match

    def _matched(self, similarity: Similarity) -> Any:
        """Return the matcher's result, which may break the matcher's contract."""
        if isinstance(similarity, Factors):
            return self.matcher(similarity)
        assert isinstance(self.matcher, CandidateMatcher)
        return self.matcher.of_candidates(similarity)

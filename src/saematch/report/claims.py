"""Statements about experiments, most of them the paper's, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from saematch.core.tables import Tables
from saematch.report import judge_rules, match_rules, skip_rules
from saematch.report.rules import Finding, MissingNumbersError


class Origin(StrEnum):
    """Who made a statement."""

    PAPER = "the paper"
    FOLLOW_UP = "the follow-up paper"
    OURS = "our own"


@dataclass(frozen=True)
class Claim:
    """One statement about an experiment, and the rule that decides it."""

    experiment: str
    source: str
    """Figure of the paper; or what the paper does not show: ``follow-up`` (by the same group),
    ``control``, ``mechanism`` (on planted SAEs) and ``observed`` (on the embedded model before)."""
    says: str
    rule_on: Callable[[Tables], Finding]
    reports: str = ""
    """Numbers that the paper reports, with their layers or figure; empty if it reports none."""

    @property
    def origin(self) -> Origin:
        """Who made the statement."""
        if self.source == "follow-up":
            return Origin.FOLLOW_UP
        return Origin.OURS if self.source in ("control", "mechanism", "observed") else Origin.PAPER

    @property
    def rule(self) -> str:
        """The rule in words."""
        return str(self.rule_on.__doc__)

    def check(self, tables: Tables) -> Finding:
        """Apply the rule; undecided where the run lacks the numbers."""
        try:
            return self.rule_on(tables)
        except (MissingNumbersError, KeyError) as error:
            return Finding(None, f"undecided: {error.args[0]}")


_SKIPPED = (
    (
        "folded above unfolded in explained variance",
        skip_rules.explained_folded_above,
    ),
    (
        "folded above unfolded in explained variance, each in its own scale",
        skip_rules.explained_own_scale_above,
    ),
    (
        "explained variance near or above 0.7 in later layers",
        skip_rules.explained_late,
        "near or above 0.7 after layer 10 of 26 (figures 10, 11)",
    ),
    (
        "the loss suffers in early layers, little in later ones",
        skip_rules.loss_falls,
        "several nats in the first layers, small after layer 10 of 26 (figures 10, 11)",
    ),
)

_FOLDED = (
    (
        "follow-up",
        "folding matters for decoding, little for finding",
        skip_rules.decoding_matters_more,
    ),
    ("follow-up", "decoding in units of the thresholds is better", skip_rules.decoding_gains),
    ("observed", "folding hardly changes which pairs are found", match_rules.found_alike),
    (
        "observed",
        "decoding folded gains where thresholds grow",
        skip_rules.gains_where_thresholds_grow,
    ),
)

CLAIMS = (
    Claim("norms", "figure 1", "norms of hidden states and thresholds grow with the layer",
          match_rules.norms_grow),
    Claim("norms", "figure 1", "norms of folded decoder vectors change as hidden states do",
          match_rules.norm_changes),
    Claim("mse", "figure 3", "identity's error is far above both matchings' in every part",
          match_rules.identity_far_above),
    Claim("mse", "figure 3", "unfolded is above folded in W_dec",
          match_rules.unfolded_above_in_decoder),
    Claim("mse", "figure 3", "unfolded is below or near folded in W_enc",
          match_rules.unfolded_near_in_encoder),
    Claim("feature_mse", "figure 5", "most matched features have a small error, few a large one",
          match_rules.long_tail),
    Claim("matching_score", "figure 7", "the score rises with the layer",
          match_rules.score_rises,
          "about 0.2 to 0.3 in early layers, about 0.5 to 0.6 later (figure 7)"),
    Claim("matching_score", "figure 7", "folded above unfolded",
          match_rules.score_folded_above),
    Claim("matching_score", "control", "the match is above identity and random",
          match_rules.score_above_chance),
    Claim("matching_score", "observed", "the hidden permutation is found almost wholly",
          match_rules.recall_almost_whole),
    Claim("parts", "figure 12", "the encoder alone is clearly worse",
          match_rules.encoder_worse),
    Claim("parts", "figure 12", "the decoder alone is about equal to both",
          match_rules.decoder_equal),
    Claim("persistence", "figure 8", "likeness fades with the distance",
          match_rules.fades, "the judge's score fades over about five layers (figure 8)"),
    Claim("persistence", "figure 8", "composition is close to the match at once for near layers",
          match_rules.composition_close),
    Claim("persistence", "figure 8", "composition is worse for far layers",
          match_rules.composition_worse),
    *(Claim("skip_layers", "figures 10, 11", *claim) for claim in _SKIPPED),
    Claim("skip_layers", "control", "the match is above a random permutation",
          skip_rules.explained_above_chance),
    Claim("skip_layers", "observed", "the match explains more than copying the hidden state",
          skip_rules.explained_above_copying),
    Claim("skip_layers", "observed", "pairs forced by a bijection explain less than nothing",
          skip_rules.explained_below_zero),
    *(Claim("llama", "as figures 10, 11", *claim) for claim in _SKIPPED),
    Claim("sparsity", "figure 14", "explained variance peaks at a middling mean L0",
          skip_rules.peak_inside, "peak near a mean L0 of 70, layers 20→21 (figure 14)"),
    Claim("similar_l0", "figure 15", "SAEs of similar L0 remove the dips",
          skip_rules.dips_vanish, "the default SAEs have a mean L0 of 59 to 141 (table 1)"),
    Claim("quantiles", "figures 16, 17", "permuting fewer features explains more",
          skip_rules.fewer_explain_more),
    *(Claim(name, *claim) for name in ("skip_layers", "folding") for claim in _FOLDED),
    Claim("paths", "control", "paths hold together better than random ones",
          match_rules.paths_hold),
    Claim("judge_layers", "figure 4", "SAME is rarer in early layers than in later ones",
          judge_rules.same_rises),
    Claim("judge_layers", "figure 7", "folded judged more alike than unfolded",
          judge_rules.judged_folded_above),
    Claim("judge_layers", "control", "matched pairs are judged more alike than random ones",
          judge_rules.judged_above_random),
    Claim("judge_layers", "control", "the order of two explanations hardly matters",
          judge_rules.order_matters_little),
    Claim("mse_by_label", "figure 6", "pairs judged the same have less error than different ones",
          judge_rules.same_has_less_error),
    Claim("persistence_judged", "figure 8", "judged likeness fades with the distance",
          judge_rules.judged_fades, "fades over about five layers (figure 8)"),
    Claim("persistence_judged", "figure 8", "composition is judged close for near layers",
          judge_rules.judged_composition_close),
    Claim("persistence_judged", "figure 8", "composition is judged below for far layers",
          judge_rules.judged_composition_below),
    Claim("planted", "mechanism", "folding finds pairs that only thresholds tell apart",
          match_rules.planted_found),
    Claim("planted", "mechanism", "decoding folded keeps up with growing thresholds",
          match_rules.planted_decoded),
    Claim("planted", "mechanism", "the norms of decoder vectors do not matter to folding",
          match_rules.gauge_is_nothing),
)  # fmt: skip
"""Everything that a reproduction decides."""

"""The tables ``matches`` and ``layers`` of every run, from weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from saematch.core.columns import Column, share
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.specs import spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.evaluate.weights import PARTS, FoldedPair, decoder_norm_change, mse
from saematch.matching.arm import Arm
from saematch.matching.matches import MatchSet
from saematch.sae.folding import is_uniform
from saematch.sae.recorders import Recording
from saematch.sae.suites import Saes

_LOGGED: Any = {"logged": ("matches",)}
ERRORS = tuple(
    Column(
        f"mse_{part}", f"mean squared error of {part}, folded", "lower", least=0.0,
        meaning=f"squared error of matched features' {part}, folded by threshold, mean over "
        "coordinates and entries",
        **_LOGGED,
    )
    for part in PARTS
)  # fmt: skip
CERTIFICATE = (
    Column("value", "value of the match", "higher", **_LOGGED,
           meaning="sum of the similarities of matched features"),
    Column("bound", "upper bound on the value", **_LOGGED,
           meaning="proven upper bound on the value of every match"),
    Column("chance", "value of a random match", **_LOGGED,
           meaning="expected value of a uniformly random permutation"),
    Column("gap", "relative gap", "lower", least=0.0, **_LOGGED,
           meaning="(bound - value) / |bound|"),
    Column("gap_over_chance", "gap over chance", "lower", least=0.0, **_LOGGED,
           meaning="(bound - value) / (bound - chance)"),
    Column("n_90", "pairs that carry 90 % of the value over chance", unit="pairs", least=0.0,
           **_LOGGED, meaning="least number of pairs with 90 % of the value over chance"),
    share("certain", "share of pairs in every optimal match",
          "lower bound on the share of pairs that are in every optimal match", **_LOGGED),
)  # fmt: skip
"""Attributes of ``Certificate``."""
RECALL = share(
    "recall", "recall of the hidden permutation", "share of the true match that was found",
    **_LOGGED,
)  # fmt: skip
AGREEMENT = share(
    "agreement", "pairs shared with the match at once",
    "share of the pairs of the match of both layers at once that composition finds too",
    **_LOGGED,
)  # fmt: skip
NORM_CHANGE = Column(
    "decoder_norm_change", "change of the folded decoder norm", **_LOGGED,
    meaning="mean over entries of the target's minus the source's folded decoder norm",
)  # fmt: skip
THRESHOLDS = (
    Column("threshold_mean", "mean threshold", logged=("layers",), meaning="mean over features"),
    Column("threshold_spread", "spread of thresholds", logged=("layers",),
           meaning="standard deviation over the mean of the thresholds"),
)  # fmt: skip


@spec("")
class MatchTables(Evaluation):
    """The evaluation of every run: metrics of each match that need only weights."""

    columns: ClassVar[tuple[Column, ...]] = (
        *ERRORS, RECALL, AGREEMENT, NORM_CHANGE, *CERTIFICATE, *THRESHOLDS,
    )  # fmt: skip

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``matches``, a row for each pair and arm, and ``layers``, a row for each SAE."""
        exact = exact_arms(subject.arms)
        layers: list[Row] = [
            {
                **key._asdict(),
                "n_features": sae.n_features,
                "stated_l0": sae.origin.mean_l0,
                **sae.thresholds,
            }
            for key, sae in subject.saes.facts.items()
        ]
        matches = match_rows(subject.saes, subject.matches, subject.truth, exact)
        return Tables.of({"matches": matches, "layers": layers})


def match_rows(
    saes: Saes,
    matches: MatchSet,
    truth: Callable[[Pair], Match | None],
    exact: Mapping[str, str],
) -> list[Row]:
    """Return the rows of the table ``matches``, without the columns that need activations.

    ``exact`` maps each arm that composes to the arm that matches both layers at once. ``agreement``
    is the share of the pairs of the match at once that composition finds too.
    """
    return [
        row for pair in matches.pairs for row in _pair_rows(saes, matches, pair, truth(pair), exact)
    ]


def _pair_rows(
    saes: Saes, matches: MatchSet, pair: Pair, truth: Match | None, exact: Mapping[str, str]
) -> list[Row]:
    source, target = saes[pair.source], saes[pair.target]
    folded = FoldedPair(source, target)
    by_hash: dict[str, Row] = {}  # arms with equal matches share their metrics
    rows: list[Row] = []
    for arm, match in matches.of(pair).items():
        key = matches.hashes[arm][pair]
        if key not in by_hash:
            errors = {f"mse_{part}": value for part, value in mse(folded, match).items()}
            by_hash[key] = {**errors, **decoder_norm_change(folded, match)}
        proof = match.certificate
        direct = matches.by_arm[exact[arm]].get(pair) if arm in exact else None
        rows.append(
            {
                **pair.columns(),
                "arm": arm,
                **by_hash[key],
                "recall": None if truth is None else match.agreement(truth),
                "agreement": None if direct is None else match.agreement(direct),
                **{
                    column.name: None if proof is None else getattr(proof, column.name)
                    for column in CERTIFICATE
                },
                "n_features": match.n_source,
                "n_matched": len(match.matched),
                "n_entries": len(match.rows),
                "dropped_mass": match.dropped,
                "uniform_threshold": is_uniform(source) and is_uniform(target),
            }
        )
    return rows


def exact_arms(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return, for each arm that composes or synchronises, an arm that matches each pair at once.

    Its other settings are the same.
    """
    return {
        name: direct_name
        for name, arm in arms.items()
        if arm.compose or arm.synchronise is not None
        for direct_name, direct in arms.items()
        if replace(arm, compose=False, synchronise=None, **_NEUTRAL) == replace(direct, **_NEUTRAL)
    }


_NEUTRAL: dict[str, Any] = {"decode": (), "quantiles": (), "composed_entries": 1}
"""Settings of an arm that do not change the match of two layers at once."""

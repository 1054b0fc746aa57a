"""The evaluation ``co_activation``: how often features fire together with their partners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.columns import Column, share
from saematch.core.match import Match
from saematch.core.pairs import POOLED, Pair, SaeKey, pair_of
from saematch.core.specs import spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.counting import CountRecorder, MatchedPair
from saematch.evaluate.counts import JACCARD, MATCHING_SCORE, Counts, PairCounts
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.evaluate.intervals import Values, Weights
from saematch.evaluate.measures import Cell, Measures
from saematch.evaluate.metrics import mean, ratio
from saematch.sae.recorders import Recording

FEATURES_AT_ONCE = 4096
"""Number of features whose replicated counts are in memory at a time."""

_SCORE: Any = {"interval": True, "logged": ("matches",)}
MACRO = share(
    "matching_score_macro", "matching score, mean over features",
    "mean over source features that fired of the share of activations with an active partner",
    **_SCORE,
)  # fmt: skip
SCORES = (
    MATCHING_SCORE,
    share("matching_score_entries", "matching score of single entries",
          "share of (token, active source feature, partner of it) with the partner active; weights "
          "are not used", **_SCORE),
    share("matching_score_live", "matching score over features whose partner fired",
          "matching score without the features whose partners never fired", **_SCORE),
    share("matching_score_matched", "matching score over features with a partner",
          "matching score without the features that have no partner", **_SCORE),
    MACRO,
    JACCARD,
)  # fmt: skip
"""Metrics of the table ``activations``, each a field of ``Scores``."""
CONTRASTED = (MATCHING_SCORE, MACRO, JACCARD)
"""Scores for which differences between arms are computed."""
RECALL_LIVE = share(
    "recall_live", "recall over features that fired",
    "recall of the true match over source features that fired on the texts", logged=("matches",),
)  # fmt: skip
MEAN_L0 = Column(
    "mean_l0", "mean L0", least=0.0, interval=True, logged=("layers",),
    meaning="mean number of active features on a token",
)  # fmt: skip
MEAN_NORM = Column(
    "mean_norm", "mean norm of the hidden states", least=0.0, interval=True, logged=("layers",),
    meaning="mean Euclidean norm of the hidden states that an SAE reads",
)  # fmt: skip
N_DEAD = Column(
    "n_dead", "features that never fired", "lower", least=0.0, logged=("layers",),
    meaning="number of features that never fired on the texts",
)  # fmt: skip
COUNTS = ("n_live", "n_dead", "n_unmatched", "n_dead_partners", "n_both_live")
"""Numbers of source features in the table ``activations``."""


@spec("evaluations.co_activation")
class CoActivation(Evaluation):
    """Spec of the evaluation ``co_activation``.

    Tables ``activations`` and ``activation_contrasts``; columns of ``matches`` and ``layers``.
    """

    columns: ClassVar[tuple[Column, ...]] = (*SCORES, RECALL_LIVE, MEAN_L0, MEAN_NORM, N_DEAD)
    reads_texts: ClassVar[bool] = True

    contrasts: bool = True
    """Whether to compare every two arms."""

    def recorder(self, subject: Subject) -> CountRecorder:
        """Return the recorder of counts; a match that several arms found is counted once."""
        saes = tuple(dict.fromkeys(subject.twins.values()))
        matched: dict[MatchedPair, Match] = {}
        for pair in subject.matches.pairs:
            for match in subject.matches.of(pair).values():
                matched.setdefault(MatchedPair(subject.twin(pair), match.hash), match)
        return CountRecorder(subject.folder, saes, matched, subject.models)

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``activations`` with a row for each pair, arm and text set, and contrasts of arms.

        The last text set of each arm is ``all``, the sets together; ``matches`` gets its columns.
        """
        assert subject.counts is not None and subject.measures is not None
        rows: list[Row] = []
        contrasts: list[Row] = []
        recall: dict[tuple[Pair, str], float | None] = {}
        for pair in subject.matches.pairs:
            scores = _scores_of(pair, subject, subject.counts)
            for arm, of_arm in scores.items():
                rows += [_row(subject.measures, Cell(pair, arm, d), s) for d, s in of_arm.items()]
            if self.contrasts:
                contrasts += _contrasts(pair, scores, subject.measures)
            truth = subject.truth(pair)
            live = None if truth is None else live_part(truth, subject.counts.fired(pair.source))
            for arm, match in subject.matches.of(pair).items():
                recall[pair, arm] = None if live is None else match.agreement(live)
        of_matches = [
            {name: value for name, value in row.items() if name != "dataset"}
            | {"recall_live": recall[pair_of(row), str(row["arm"])]}
            for row in rows
            if row["dataset"] == POOLED
        ]
        layers = [_layer_row(key, subject.counts) for key in subject.twins]
        compared = {"activation_contrasts": contrasts} if self.contrasts else {}
        return Tables.of({"activations": rows, "matches": of_matches, "layers": layers, **compared})


@dataclass(frozen=True)
class Scores:
    """Scores of how often matched features are active on the same token.

    For a feature with several partners, one active partner is enough.
    """

    matching_score: Values
    """Share of all (token, active source feature) with an active partner (micro average). A feature
    without a partner counts as a miss."""
    matching_score_entries: Values
    """Share of all (token, active source feature, partner of it) with the partner active; NaN if
    there are none. Weights are not used."""
    matching_score_live: Values
    """``matching_score`` without features whose partners never fired."""
    matching_score_matched: Values
    """``matching_score`` over features with a partner only; NaN if none of them fired."""
    matching_score_macro: Values
    """Mean over source features that fired of the share of activations with an active partner."""
    jaccard: Values
    """Mean over source features that fired of the Jaccard index: both active / either active."""
    n_live: int
    """Number of source features that fired, over which the last two metrics are means. It is the
    sum of the last three counts."""
    n_dead: int
    """Number of source features that never fired."""
    n_unmatched: int
    """Number of source features that fired and have no partner."""
    n_dead_partners: int
    """Number of source features that fired and whose partners never fired."""
    n_both_live: int
    """Number of source features that fired and have a partner that fired."""


def co_activation(
    weights: Weights, counts: PairCounts, n_partners: Int64[Tensor, " n_features"]
) -> Scores:
    """Score a match from counts by text and source feature; 0 if no feature fired.

    ``n_partners`` has the number of partners of each source feature.
    """
    both, fired_source, fired_target, entries = counts
    partnered = n_partners > 0
    live = fired_source.any(dim=0)
    both_live = live & fired_target.any(dim=0)
    unmatched = live & ~partnered
    hits = weights @ both.sum(dim=1).double()

    def fired(features: Tensor) -> Values:
        return weights @ fired_source[:, features].sum(dim=1).double()

    of_live = (both[:, live], fired_source[:, live], fired_target[:, live])
    macro, jaccard, fired_live = _by_feature(weights, *of_live, unmatched[live])
    return Scores(
        ratio(hits, fired(live)),
        weights @ entries.double() / (weights @ (fired_source @ n_partners).double()),
        ratio(hits, fired_live),
        hits / fired(live & partnered),
        macro,
        jaccard,
        n_live=int(live.sum()),
        n_dead=int((~live).sum()),
        n_unmatched=int(unmatched.sum()),
        n_dead_partners=int((live & partnered & ~both_live).sum()),
        n_both_live=int(both_live.sum()),
    )


def _by_feature(
    weights: Weights, both: Tensor, fired: Tensor, partner: Tensor, unmatched: Tensor
) -> tuple[Values, Values, Values]:
    """Return the sums that depend on which features fire in each replicate.

    These are the means of both / fired and of both / either over features that fired, and the
    number of activations of features that are unmatched or whose partner fired.
    """
    macro, jaccard, n, live = (torch.zeros(len(weights), dtype=torch.float64) for _ in range(4))
    exact = weights.float()  # counts stay far below 2^24
    for part in torch.arange(fired.shape[1]).split(FEATURES_AT_ONCE):
        hits, activations, partners = (
            (exact @ counts[:, part].float()).double() for counts in (both, fired, partner)
        )
        macro += ratio(hits, activations).sum(dim=1)
        shares = ratio(hits, activations + partners - hits)
        jaccard += shares.masked_fill_(activations == 0, 0).sum(dim=1)
        n += (activations > 0).sum(dim=1)
        live += torch.where((partners > 0) | unmatched[part], activations, 0).sum(dim=1)
    return ratio(macro, n), ratio(jaccard, n), live


def _scores_of(pair: Pair, subject: Subject, counts: Counts) -> dict[str, dict[str, Scores]]:
    """Return the scores of each arm by text set; arms that found the same match share them."""
    assert subject.measures is not None
    by_match: dict[str, dict[str, Scores]] = {}
    by_arm = {}
    for arm, match in subject.matches.of(pair).items():
        if match.hash not in by_match:
            by_match[match.hash] = _scores(pair, match, counts, subject.measures)
        by_arm[arm] = by_match[match.hash]
    return by_arm


def _scores(pair: Pair, match: Match, counts: Counts, measures: Measures) -> dict[str, Scores]:
    of_sets = counts.of_pair(pair, match)
    pooled = PairCounts(*map(torch.cat, zip(*of_sets.values(), strict=True)))
    n_partners = torch.bincount(match.rows, minlength=match.n_source)
    return {
        dataset: co_activation(measures.weights_of(dataset), of_set, n_partners)
        for dataset, of_set in {**of_sets, POOLED: pooled}.items()
    }


def _row(measures: Measures, cell: Cell, scores: Scores) -> Row:
    values = {column: getattr(scores, column.name) for column in SCORES}
    return measures.row(cell, values) | {name: getattr(scores, name) for name in COUNTS}


def _contrasts(
    pair: Pair, scores: Mapping[str, Mapping[str, Scores]], measures: Measures
) -> Iterator[Row]:
    """Yield the rows of ``activation_contrasts`` for one pair: each arm minus each later arm."""
    for arm, other in combinations(scores, 2):
        for dataset, of_arm in scores[arm].items():
            row: Row = {**pair.columns(), "dataset": dataset, "arm": arm, "against_arm": other}
            for column in CONTRASTED:
                values = getattr(of_arm, column.name) - getattr(scores[other][dataset], column.name)
                row |= measures.replicates.row(column.difference, values)
            yield row


def _layer_row(key: SaeKey, counts: Counts) -> Row:
    """Return the row of ``layers`` for one SAE, measured over all text sets."""
    weights = counts.replicates.pooled()
    n_tokens = counts.total(key, "n_tokens")
    fired = counts.fired_by_text(key)
    live = fired.any(dim=0)
    l0 = mean(weights, fired.sum(dim=1).double(), n_tokens)
    norm = mean(weights, counts.total(key, f"x_norm|{key.layer}"), n_tokens)
    return {
        **key._asdict(),
        **counts.replicates.row(MEAN_L0, l0),
        **counts.replicates.row(MEAN_NORM, norm),
        "n_live": int(live.sum()),
        "n_dead": int((~live).sum()),
        "n_texts": len(n_tokens),
        "n_tokens": int(n_tokens.sum()),
        "n_special": int(counts.total(key, "n_special").sum()),
    }


def live_part(truth: Match | None, fired: Int64[Tensor, " n_features"]) -> Match | None:
    """Return the true match of the source features that fired; None if there are none."""
    live = None if truth is None else truth.keep(fired[truth.rows] > 0)
    return None if live is None or not len(live.rows) else live

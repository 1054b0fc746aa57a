"""Follow single features through the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, Refusal, SaeKey
from saematch.core.specs import AtLeast1, Seed, Some, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.counts import Counts
from saematch.evaluate.evaluation import Evaluation, PairFacts, Subject
from saematch.evaluate.following import BREADTH, Step, begin, follow
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.sae.recorders import Recording
from saematch.sae.suites import SaeFacts, SaeShelf

COSINE = Column(
    "cosine_W_dec", "cosine of decoder vectors", "higher", least=-1.0, greatest=1.0,
    meaning="cosine of the two features' decoder vectors, not folded",
)  # fmt: skip


@spec("evaluations.paths")
class Paths(Evaluation):
    """Spec of the evaluation ``paths``: the features of the first layer to follow.

    A path goes from each layer to the next through their match. This is composition of the matches
    (section 3.2).
    """

    columns: ClassVar[tuple[Column, ...]] = (COSINE,)

    n_paths: AtLeast1 = 20
    seed: Seed = 0
    breadth: AtLeast1 = BREADTH
    """Largest number of features of a path at a layer; those of largest absolute weight stay."""
    features: Some[int] | None = None
    """Features of the first layer to follow; None draws ``n_paths`` at random. If the run counts
    activations (``co_activation``), only features that fired are drawn."""

    def check_saes(self, saes: SaeShelf) -> None:
        """Refuse features that a suite's first SAE does not have."""
        first: dict[str, SaeKey] = {}
        for key in saes:
            first.setdefault(key.suite, key)
        for key in first.values():
            check_features(self.features or (), key, saes.facts[key])

    def refusals(
        self, pairs: Sequence[PairFacts], refused: Sequence[Refusal]
    ) -> Iterator[tuple[Pair, str]]:
        """Yield the pairs that no path reaches: a suite's first refused pair and all later pairs.

        A pair that one arm cannot match ends the paths of every arm.
        """
        reasons = {
            refusal.pair: refusal.reason
            if refusal.arm is None
            else f"the arm {refusal.arm} cannot match the next pair: {refusal.reason}"
            for refusal in refused
            if refusal.evaluation in ("matching", "co_activation")
        }
        ended: dict[str, str] = {}
        for pair, *_ in pairs:
            if pair in reasons:
                reason = f"no path goes beyond {pair.source.name}: {reasons[pair]}"
                ended.setdefault(pair.suites, reason)
            if pair.suites in ended:
                yield pair, ended[pair.suites]

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``paths``: a row for each suite, arm, path, step and entry that it follows.

        A path ends early where none of its features has a partner. All arms follow the same
        features.
        """
        rows: list[Row] = []
        for _, group in groupby(subject.matches.pairs, key=lambda pair: pair.suites):
            rows += self._rows(subject, list(group))
        return Tables.of({"paths": rows})

    def _rows(self, subject: Subject, pairs: list[Pair]) -> list[Row]:
        by_arm = subject.matches.by_arm
        n_features = next(iter(by_arm.values()))[pairs[0]].n_source
        first = begin(self._choose(n_features, pairs[0].source, subject.counts))
        fronts = dict.fromkeys(by_arm, first)
        rows: dict[str, list[Row]] = {arm: [] for arm in by_arm}
        for number, pair in enumerate(pairs):
            folded = FoldedPair(subject.saes[pair.source], subject.saes[pair.target])
            for arm, of_arm in by_arm.items():
                steps, fronts[arm] = follow(fronts[arm], of_arm[pair], self.breadth)
                scores = _scores(folded, of_arm[pair], pair, steps, subject.counts)
                for step, score in zip(steps, scores, strict=True):
                    row: Row = {**pair.columns(), "arm": arm, "path": step.path, "step": number}
                    row |= {name: getattr(step, name) for name in _COLUMNS}
                    rows[arm].append(row | score)
            del folded  # so that memory never holds two pairs
        return [row for of_arm in rows.values() for row in of_arm]

    def _choose(self, n_features: int, key: SaeKey, counts: Counts | None) -> list[int]:
        if self.features is not None:
            return list(self.features)
        features = torch.arange(n_features)
        live = features if counts is None else features[counts.fired(key) > 0]
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(live), generator=generator)[: self.n_paths]
        return live[order].tolist()


_COLUMNS = ("source_feature", "target_feature", "weight", "path_weight", "dropped_mass")
"""Fields of a step that are columns."""


def check_features(features: Sequence[int], key: SaeKey, sae: SaeFacts) -> None:
    """Refuse features that an SAE does not have."""
    beyond = [feature for feature in features if not 0 <= feature < sae.n_features]
    if beyond:
        raise InputError(
            f"evaluations.paths.features holds {beyond[0]}, but {key.name} has features 0 to "
            f"{sae.n_features - 1}"
        )


def _scores(
    folded: FoldedPair, match: Match, pair: Pair, steps: list[Step], counts: Counts | None
) -> list[Row]:
    """Return the similarity metrics of the two features of each step."""
    entries = sorted({step.entry for step in steps})
    chosen = torch.zeros(len(match.rows), dtype=torch.bool)
    chosen[entries] = True
    followed = match.keep(chosen)
    errors = feature_mse(folded, followed).tolist()
    cosines = [math.nan] * len(errors)
    if folded.is_comparable:
        source, target = folded.source.W_dec, folded.target.W_dec
        vectors = source[followed.rows], target[followed.columns]
        cosines = cosine_similarity(*vectors, dim=1).tolist()
    rows: list[Row] = [
        {"mse_W_dec": error, "cosine_W_dec": cosine}
        for error, cosine in zip(errors, cosines, strict=True)
    ]
    if counts is not None:
        of_entries = counts.of_entries(pair, match, entries)
        rows = [row | of_entry for row, of_entry in zip(rows, of_entries, strict=True)]
    by_entry = dict(zip(entries, rows, strict=True))
    return [by_entry[step.entry] for step in steps]

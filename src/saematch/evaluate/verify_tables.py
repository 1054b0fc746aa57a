"""Tables of the evaluation ``verify``: scores of arms, controls and ceilings on the same events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from torch import Tensor

from saematch.core.columns import Column
from saematch.core.pairs import POOLED, Pair
from saematch.core.tables import Row
from saematch.evaluate.effects import (
    NONE,
    Effects,
    Outcome,
    Partners,
    Scores,
    deciles,
    mean_of,
    quantile_groups,
    random_partners,
    ranked_partners,
)
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.events import Sample
from saematch.evaluate.intervals import Replicates, Values
from saematch.evaluate.interventions import EDITS, REMOVE
from saematch.evaluate.measures import Cell, MeasureKey
from saematch.evaluate.verify_columns import (
    CONTROLLED,
    COVERAGE,
    EFFECT,
    MASS,
    OF_RANDOM,
    OFF_RATE,
    OFF_RATE_ACTIVE,
    OVER_RANDOM,
)
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.sae.recorders import Recording

NEAR_MISS, LEARNED, HINDSIGHT = "near miss", "learned", "best in hindsight"
"""Names of controls and ceilings in the column ``arm``: a random one of the 2nd to 6th best targets
by decoder cosine; the best single partner learned on calibration texts; the best target of each
event."""
BY_FEATURE, BY_TOKEN = "feature", "token"
"""Names of the samples of events."""
NEAREST = 6
N_STRATA = 4


@dataclass(frozen=True)
class Verified:
    """The recorded effects of one pair, and the activity of its features on calibration texts."""

    pair: Pair
    twin: Pair
    """The pair with the keys that the recording uses."""
    recording: Recording
    source: Sample
    target: Sample
    tested: Tensor
    """Which source features are tested, ``[n_source]``."""
    learned: np.ndarray | None
    """Partner of each source feature that was learned by removing it; None if not learned."""

    def effects(self, edit: str, more: Sequence[str] = ()) -> Effects:
        """Return the effects of an edit, with more recorded columns of each event."""
        return Effects.read(self.recording, self.twin, edit, len(self.target.n_active), more)

    @cached_property
    def groups(self) -> np.ndarray:
        """Decile of activity of each target feature."""
        n_active = self.target.n_active.numpy()
        return deciles(n_active, n_active > 0)


class Candidate(NamedTuple):
    """Partners that are tested: those of an arm, a control or a ceiling."""

    name: str
    partners: np.ndarray | None
    """Ranked partners of each source feature; None for the best target of each event."""
    ks: tuple[int, ...]
    """Numbers of best partners that are tested together."""


@dataclass(frozen=True)
class PairTables:
    """Computes the tables of one pair."""

    subject: Subject
    verified: Verified
    replicates: Replicates
    partners: Sequence[int]
    """Numbers of best partners that are tested together."""
    seed: int
    floor: int
    """Least number of calibration tokens on which a tested feature is active."""
    controls: bool = True
    """Whether the recording has the edits other than ``remove``."""

    @property
    def pair(self) -> Pair:
        """The pair of the tables."""
        return self.verified.pair

    @cached_property
    def weights(self) -> Tensor:
        """Weights of the texts of all sets."""
        return self.replicates.pooled()

    @cached_property
    def removed(self) -> Effects:
        """The effects of removing features."""
        return self.verified.effects(REMOVE)

    @cached_property
    def arms(self) -> dict[str, np.ndarray]:
        """Ranked partners of each source feature, as many as are tested, by arm."""
        matches = self.subject.matches.of(self.pair)
        return {n: ranked_partners(m)[:, : max(self.partners)] for n, m in matches.items()}

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Arms, controls and ceilings."""
        candidates = [
            Candidate(name, partners, tuple(k for k in self.partners if k <= partners.shape[1]))
            for name, partners in self.arms.items()
        ]
        candidates.append(Candidate(NEAR_MISS, self._nearest(), (1,)))
        if self.verified.learned is not None:
            candidates.append(Candidate(LEARNED, self.verified.learned[:, None], (1,)))
        return [*candidates, Candidate(HINDSIGHT, None, (1,))]

    def _nearest(self) -> np.ndarray:
        """Return the nearest targets of each source feature by decoder cosine."""
        source, target = (self.subject.saes[key] for key in self.pair)
        nearest = TopK(min(NEAREST, target.n_features))
        return ranked_partners(nearest(DecoderCosine().factors(source, target)))

    def of_events(self, candidate: Candidate, features: np.ndarray) -> Partners:
        """Return the candidate's ranked partners for the source feature of each event."""
        assert candidate.partners is not None
        partners = candidate.partners[features]
        if candidate.name != NEAR_MISS or partners.shape[1] == 1:
            return partners
        generator = np.random.default_rng(self.seed)
        ranks = generator.integers(1, partners.shape[1], size=(len(partners), 1))
        return np.take_along_axis(partners, ranks, axis=1)

    def outcomes(self, effects: Effects, candidate: Candidate) -> tuple[Outcome, Outcome | None]:
        """Return the changes of the candidate's partners and of as many random targets.

        For the best target of each event there are no random targets.
        """
        if candidate.partners is None:
            return effects.of_best(), None
        partners = self.of_events(candidate, effects.features)
        random = random_partners(partners, self.verified.groups, self.seed)
        return effects.of_partners(partners), effects.of_partners(random)

    def scores(self) -> Iterator[Row]:
        """Yield the rows of ``verify``."""
        for edit in EDITS if self.controls else (REMOVE,):
            effects = self.removed if edit == REMOVE else self.verified.effects(edit)
            for candidate in self.candidates:
                outcome, random = self.outcomes(effects, candidate)
                for sampling, sampled in _samplings(effects, edit):
                    for k in candidate.ks:
                        scores = outcome.at(k)
                        of_random = None if random is None else random.at(k)
                        key: Row = {**self.pair.columns(), "arm": candidate.name}
                        key |= {"sampling": sampling, "edit": edit, "k": k}
                        row = self._score_row(effects, scores, of_random, sampled)
                        yield key | row | {"n_events": int(sampled.sum())}
                        if (edit, sampling) == (REMOVE, BY_FEATURE) and of_random is not None:
                            self._keep(candidate, k, effects, (scores, of_random), sampled)

    def _score_row(
        self, effects: Effects, scores: Scores, random: Scores | None, sampled: np.ndarray
    ) -> Row:
        row: Row = {}
        for column, values in _metrics(scores).items():
            row |= self.row(column, effects, values, sampled)
        active = sampled & (scores.coverage > 0)
        row |= self.row(OFF_RATE_ACTIVE, effects, scores.off, active)
        of_random = {} if random is None else _metrics(random)
        for column in CONTROLLED:
            if column in of_random:
                mean = self.mean(effects, of_random[column], sampled)
                row[OF_RANDOM[column].name] = mean[0].item()
                difference = _metrics(scores)[column] - of_random[column]
                row |= self.row(OVER_RANDOM[column], effects, difference, sampled)
        return row

    def _keep(
        self, candidate: Candidate, k: int, effects: Effects, scores: tuple[Scores, Scores],
        sampled: np.ndarray, stratum: int | None = None,
    ) -> None:  # fmt: skip
        """Keep an arm's metrics minus those of random targets; ``scores`` has those of both."""
        if candidate.name not in self.arms or self.subject.measures is None:
            return
        of_partners, of_random = map(_metrics, scores)
        cell = Cell(self.pair, candidate.name, POOLED)
        for column in CONTROLLED:
            over_random = OVER_RANDOM[column]
            mean = self.mean(effects, of_partners[column] - of_random[column], sampled)
            key = MeasureKey(cell, over_random.name, k, stratum)
            self.subject.measures.kept[key] = over_random, mean

    def mean(self, effects: Effects, values: np.ndarray, where: np.ndarray) -> Values:
        """Return the mean over events, with its replicates."""
        return mean_of(values, effects.columns["text"], self.weights, where)

    def row(self, column: Column, effects: Effects, values: np.ndarray, where: np.ndarray) -> Row:
        """Return the columns of a metric that is a mean over events."""
        return self.replicates.row(column, self.mean(effects, values, where))

    def matches(self) -> Iterator[Row]:
        """Yield the columns of ``matches``: the best partner, removed, sampled by feature."""
        assert self.subject.measures is not None
        sampled = self.removed.columns["by_feature"]
        for candidate in self.candidates[: len(self.arms)]:
            outcome, random = self.outcomes(self.removed, candidate)
            assert random is not None
            scores, of_random = outcome.at(1), random.at(1)
            values = {
                EFFECT: self.mean(self.removed, scores.effect, sampled),
                OFF_RATE: self.mean(self.removed, scores.off, sampled),
                OVER_RANDOM[EFFECT]: self.mean(
                    self.removed, scores.effect - of_random.effect, sampled
                ),
            }
            row = self.subject.measures.row(Cell(self.pair, candidate.name, POOLED), values)
            yield {name: value for name, value in row.items() if name != "dataset"}

    def contrasts(self) -> Iterator[Row]:
        """Yield the rows of ``verify_contrasts``: paired differences on the same events."""
        outcomes = {c.name: (c, self.outcomes(self.removed, c)[0]) for c in self.candidates}
        for (first, outcome), (second, other) in combinations(outcomes.values(), 2):
            for k in sorted({*first.ks} & {*second.ks}):
                scores, compared = outcome.at(k), other.at(k)
                for sampling, sampled in _samplings(self.removed, REMOVE):
                    row: Row = {**self.pair.columns(), "sampling": sampling, "k": k}
                    row |= {"arm": first.name, "against_arm": second.name}
                    for column, difference in (
                        (EFFECT, scores.effect - compared.effect),
                        (OFF_RATE, scores.off - compared.off),
                    ):
                        row |= self.row(column.difference, self.removed, difference, sampled)
                    yield row

    def strata(self) -> Iterator[Row]:
        """Yield the rows of ``verify_strata``: scores by activity of the source feature."""
        effects, tested = self.removed, self.verified.tested.numpy()
        strata = np.full(len(tested), NONE)
        strata[tested] = quantile_groups(self.verified.source.n_active.numpy()[tested], N_STRATA)
        for candidate in self.candidates:
            outcome, random = self.outcomes(effects, candidate)
            for stratum in range(N_STRATA):
                sampled = effects.columns["by_feature"] & (strata[effects.features] == stratum)
                if not sampled.any():
                    continue
                for k in candidate.ks:
                    row: Row = {**self.pair.columns(), "arm": candidate.name}
                    row |= {"stratum": stratum + 1, "k": k}
                    scores = outcome.at(k)
                    row |= self.row(OFF_RATE, effects, scores.off, sampled)
                    row |= self.row(EFFECT, effects, scores.effect, sampled)
                    if random is not None:
                        of_random = random.at(k)
                        mean = self.mean(effects, of_random.effect, sampled)
                        row[OF_RANDOM[EFFECT].name] = mean[0].item()
                        both = scores, of_random
                        self._keep(candidate, k, effects, both, sampled, stratum + 1)
                    row |= {"n_features": int((strata == stratum).sum())}
                    yield row | {"n_events": int(sampled.sum())}

    def counts(self) -> Row:
        """Return the row of ``verify_counts``."""
        effects, verified = self.removed, self.verified
        by_feature = effects.columns["by_feature"]
        tested = int(verified.tested.sum())
        return {
            **self.pair.columns(),
            "n_features": len(verified.tested),
            "n_below_floor": int((verified.source.n_active < self.floor).sum()),
            "n_tested": tested,
            "n_without_events": tested - len(np.unique(effects.features[by_feature])),
            "n_events": int(by_feature.sum()),
            "n_token_events": int(effects.columns["by_token"].sum()),
            "n_texts": self.weights.shape[1],
            "n_calibration_tokens": verified.source.n_tokens,
        }


def _samplings(effects: Effects, edit: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the samplings of an edit's events; doses and controls are sampled by feature only."""
    names = {BY_FEATURE: "by_feature", BY_TOKEN: "by_token"}
    for sampling, name in names.items():
        sampled = effects.columns[name]
        if sampled.any() and (sampling == BY_FEATURE or edit == REMOVE):
            yield sampling, sampled


def _metrics(scores: Scores) -> Mapping[Column, np.ndarray]:
    return {
        OFF_RATE: scores.off,
        EFFECT: scores.effect,
        MASS: scores.mass,
        COVERAGE: scores.coverage,
    }

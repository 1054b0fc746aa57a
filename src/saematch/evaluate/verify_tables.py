"""Tables of the evaluation ``verify``: scores of arms, controls and ceilings on the same events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saematch.core.columns import Column
from saematch.core.pairs import POOLED, Pair
from saematch.core.tables import Row
from saematch.evaluate.ablation import EDITS, INJECT, REMOVE, effect_name, joint_edit
from saematch.evaluate.effects import (
    NONE,
    Effects,
    Outcome,
    Partners,
    Scores,
    deciles,
    different_events,
    mean_of,
    quantile_groups,
    random_partners,
    ranked_partners,
    read_events,
)
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.events import Sample
from saematch.evaluate.intervals import Replicates, Values
from saematch.evaluate.measures import Cell
from saematch.evaluate.verify_columns import (
    CONTROLLED,
    CORRELATION,
    COVERAGE,
    EFFECT,
    ERASED,
    JOINT_EFFECT,
    JOINT_OFF_RATE,
    MASS,
    OF_RANDOM,
    OFF_RATE,
    OFF_RATE_ACTIVE,
    ON_RATE,
    ON_RATE_RANDOM,
    OVER_RANDOM,
    REINFORCED,
    SINGLE_EFFECT,
    SINGLE_OFF_RATE,
    SLOPE,
    SPECIFICITY,
)
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.sae.recorders import Recording

NEAR_MISS, LEARNED, HINDSIGHT = "near miss", "learned", "best in hindsight"
"""Names in place of an arm: a random one of the 2nd to 6th best partners by decoder cosine; the
best single partner learned on calibration texts; the best target of each event."""
BY_FEATURE, BY_TOKEN = "feature", "token"
"""Samplings of events."""
NEAREST = 6
N_STRATA = 4
REINFORCES, ERASES = 1.1, 0.1
"""Ratios of measured to predicted change above and below which a change is reinforced or erased."""
N_CHANGES = 200
"""Largest number of events of a pair and arm in the table ``verify_changes``."""


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

    def effects(self, edit: str) -> Effects:
        """Return the effects of an edit."""
        return Effects.read(self.recording, self.twin, edit, len(self.target.n_active))

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

    @property
    def pair(self) -> Pair:
        """Return the pair of the tables."""
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
        """Ranked partners of each source feature, by arm."""
        return {n: ranked_partners(m) for n, m in self.subject.matches.of(self.pair).items()}

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
        return ranked_partners(TopK(NEAREST)(DecoderCosine().factors(source, target)))

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
        """Return what happened to the candidate's partners, and to random targets instead.

        There are no random targets in place of the best target of each event.
        """
        if candidate.partners is None:
            return effects.of_best(), None
        partners = self.of_events(candidate, effects.features)
        random = random_partners(partners, self.verified.groups, self.seed)
        return effects.of_partners(partners), effects.of_partners(random)

    def scores(self) -> Iterator[Row]:
        """Yield the rows of ``verify``."""
        for edit in EDITS:
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

    def _score_row(
        self, effects: Effects, scores: Scores, random: Scores | None, sampled: np.ndarray
    ) -> Row:
        row: Row = {}
        for column, values in _metrics(scores).items():
            row |= self._row(column, effects, values, sampled)
        active = sampled & (scores.coverage > 0)
        row |= self._row(OFF_RATE_ACTIVE, effects, scores.off, active)
        of_random = {} if random is None else _metrics(random)
        for column in CONTROLLED:
            if column in of_random:
                mean = self.mean(effects, of_random[column], sampled)
                row[OF_RANDOM[column].name] = mean[0].item()
                difference = _metrics(scores)[column] - of_random[column]
                row |= self._row(OVER_RANDOM[column], effects, difference, sampled)
        return row

    def mean(self, effects: Effects, values: np.ndarray, where: np.ndarray) -> Values:
        """Return the mean over events, with its replicates."""
        return mean_of(values, effects.columns["text"], self.weights, where)

    def _row(self, column: Column, effects: Effects, values: np.ndarray, where: np.ndarray) -> Row:
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
                scores, others = outcome.at(k), other.at(k)
                for sampling, sampled in _samplings(self.removed, REMOVE):
                    row: Row = {**self.pair.columns(), "sampling": sampling, "k": k}
                    row |= {"arm": first.name, "against_arm": second.name}
                    for column, difference in (
                        (EFFECT, scores.effect - others.effect),
                        (OFF_RATE, scores.off - others.off),
                    ):
                        row |= self._row(column.difference, self.removed, difference, sampled)
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
                    row |= self._row(OFF_RATE, effects, scores.off, sampled)
                    row |= self._row(EFFECT, effects, scores.effect, sampled)
                    if random is not None:
                        mean = self.mean(effects, random.at(k).effect, sampled)
                        row[OF_RANDOM[EFFECT].name] = mean[0].item()
                    row |= {"n_features": int((strata == stratum).sum())}
                    yield row | {"n_events": int(sampled.sum())}

    def injection(self) -> Iterator[Row]:
        """Yield the rows of ``verify_injection``, for the best partner of each feature."""
        if not _recorded(self.verified, INJECT):
            return
        effects = Effects.read(
            self.verified.recording, self.verified.twin, INJECT, len(self.verified.groups),
            ("silent", "total"),
        )  # fmt: skip
        silent, total = effects.columns["silent"], effects.columns["total"]
        for name, ranked in self.arms.items():
            partners = ranked[effects.features][:, :1]
            random = random_partners(partners, self.verified.groups, self.seed)
            row: Row = {**self.pair.columns(), "arm": name}
            for chosen in (partners, random):
                entries = effects.entries_of(chosen)[:, 0]
                recorded = entries != NONE
                before, after, change = (
                    np.where(recorded, column[entries] if len(column) else 0, 0)
                    for column in (effects.before, effects.after, effects.change)
                )
                eligible = silent & (chosen[:, 0] != NONE) & (before == 0)
                on = (after > 0).astype(float)
                if chosen is random:
                    row[ON_RATE_RANDOM.name] = self.mean(effects, on, eligible)[0].item()
                    continue
                share = np.divide(np.abs(change), total, out=np.zeros(len(total)), where=total > 0)
                row |= self._row(ON_RATE, effects, on, eligible)
                row |= self._row(SPECIFICITY, effects, share, eligible)
                n_events = int(eligible.sum())
                row |= {"n_events": n_events, "n_dropped": len(effects) - n_events}
            yield row

    def joint(self) -> Iterator[Row]:
        """Yield the rows of ``verify_joint``, for arms that give a target several sources."""
        for name, match in self.subject.matches.of(self.pair).items():
            edit = joint_edit(match.hash)
            if not _recorded(self.verified, edit):
                continue
            columns = read_events(
                self.verified.recording, self.verified.twin, edit,
                ("before", "joint", "single", "n_sources"),
            )  # fmt: skip
            chosen = different_events(columns)
            columns = {column: values[chosen] for column, values in columns.items()}
            if not len(columns["text"]):
                continue
            row: Row = {**self.pair.columns(), "arm": name}
            for kind, effect, off in (
                ("joint", JOINT_EFFECT, JOINT_OFF_RATE),
                ("single", SINGLE_EFFECT, SINGLE_OFF_RATE),
            ):
                D = np.clip(1 - columns[kind] / columns["before"], -1, 1).astype(float)
                is_off = (columns[kind] == 0).astype(float)
                for column, values in ((effect, D), (off, is_off)):
                    mean = mean_of(values, columns["text"], self.weights)
                    row |= self.replicates.row(column, mean)
            row["mean_sources"] = float(columns["n_sources"].mean())
            yield row | {"n_events": len(columns["text"])}

    def predicted(self, partners: np.ndarray) -> Changes:
        """Return predicted and measured changes of the best partner, where it was active."""
        effects = self.removed
        best = partners[effects.features][:, :1]
        entries = effects.entries_of(best)[:, 0]
        sampled = effects.columns["by_feature"] & (entries != NONE)
        features, targets = effects.features[sampled], best[sampled, 0]
        source, target = (self.subject.saes[key] for key in self.pair)
        written = torch.einsum(
            "nd,nd->n",
            source.W_dec[torch.from_numpy(features)].double(),
            target.W_enc.T[torch.from_numpy(targets)].double(),
        )
        predicted = -effects.columns["value"][sampled] * written.numpy()
        return Changes(
            predicted, effects.change[entries[sampled]], effects.columns["text"][sampled]
        )

    def direct(self) -> Iterator[Row]:
        """Yield the rows of ``verify_direct``: predicted against measured change."""
        for name, partners in self.arms.items():
            changes = self.predicted(partners)
            if not len(changes.texts):
                continue
            row: Row = {**self.pair.columns(), "arm": name}
            for column, values in changes.metrics(self.weights).items():
                row |= self.replicates.row(column, values)
            yield row | {"n_events": len(changes.texts)}

    def changes(self) -> Iterator[Row]:
        """Yield the rows of ``verify_changes``: some of the events of ``verify_direct``."""
        for name, partners in self.arms.items():
            changes = self.predicted(partners)
            n = len(changes.texts)
            for number in np.linspace(0, n - 1, min(n, N_CHANGES)).astype(int).tolist():
                row: Row = {**self.pair.columns(), "arm": name}
                row["predicted"] = float(changes.predicted[number])
                yield row | {"measured": float(changes.measured[number])}

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


class Changes(NamedTuple):
    """Changes of the pre-activation of partners."""

    predicted: np.ndarray
    """``-f_i (d_i . w_enc_j)``: the change that the weights predict if no block reacts."""
    measured: np.ndarray
    texts: np.ndarray

    def metrics(self, weights: Tensor) -> dict[Column, Values]:
        """Return the metrics of ``verify_direct`` with their replicates."""
        p, m = self.predicted, self.measured
        one, pp, mm, pm, sum_p, sum_m = (
            weights @ torch.from_numpy(np.bincount(self.texts, values, weights.shape[1]))
            for values in (np.ones(len(p)), p * p, m * m, p * m, p, m)
        )
        covariance = pm - sum_p * sum_m / one
        spread = (pp - sum_p.square() / one) * (mm - sum_m.square() / one)
        reinforced = (m * np.sign(p) > REINFORCES * np.abs(p)).astype(float)
        erased = (m * np.sign(p) < ERASES * np.abs(p)).astype(float)
        return {
            SLOPE: pm / pp,
            CORRELATION: covariance / spread.sqrt(),
            REINFORCED: mean_of(reinforced, self.texts, weights),
            ERASED: mean_of(erased, self.texts, weights),
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


def _recorded(verified: Verified, edit: str) -> bool:
    """Return whether the edit was done."""
    return verified.recording.has(effect_name(verified.twin, f"{edit}|text"))

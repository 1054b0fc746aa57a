"""The evaluation ``verify``: test by intervention whether a match does what it says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from saematch.core.errors import InputError, stage
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.progress import progress
from saematch.core.specs import AtLeast0, AtLeast1, Seed, Some, Unique, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.ablation import AblationRecorder
from saematch.evaluate.effects import NONE, Effects
from saematch.evaluate.evaluation import Evaluation, PairFacts, Subject, forward_refusal
from saematch.evaluate.events import EventRecorder, Events, Sample, Sizes, Tokens
from saematch.evaluate.interventions import REMOVE, Interventions
from saematch.evaluate.verify_columns import COLUMNS
from saematch.evaluate.verify_features import (
    FeatureTables,
    activity_measures,
    judge_correlations,
    parquet_path,
    weight_measures,
)
from saematch.evaluate.verify_further import FurtherTables
from saematch.evaluate.verify_tables import PairTables, Verified
from saematch.matching.arm import Arm
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Recorder, Recording

log = logging.getLogger(__name__)

N_MEDIAN = 64
"""Largest number of events from which a feature's median activation is computed."""
MIN_EVENTS = 8
"""Least number of events of a pair."""


@spec("evaluations.verify")
class Verify(Evaluation):
    """Spec of the evaluation ``verify``, which intervenes on source features (docs/verify.md)."""

    columns: ClassVar = COLUMNS
    reads_texts: ClassVar[bool] = True

    partners: Some[AtLeast1] = (1, 2, 5, 20)
    """Numbers of best partners that are tested together, if a match gives a feature so many."""
    n_events: AtLeast1 = 3
    """Largest number of events of a feature in the sample by feature."""
    n_token_events: AtLeast0 = 1000
    """Number of events drawn for a source SAE in the sample by token; 0 leaves that sample out.
    Events of features below the floor are then left out."""
    n_learning: AtLeast0 = 8
    """Largest number of events of a feature on calibration texts, from which its best single
    partner is learned; 0 leaves that ceiling out."""
    n_injections: AtLeast0 = 1
    """Number of random tokens at which each feature is written; 0 leaves injections out."""
    n_joint: AtLeast0 = 1
    """Largest number of events of a target feature in which its active sources are removed
    together; 0 leaves joint removals out."""
    controls: bool = True
    """Whether active features are also halved, set to their mean and replaced by a random
    direction."""
    details: bool = True
    """Whether to compare every two arms, and to make the tables of predicted changes and of single
    features. Their size and time grow with the number of arms."""
    floor: AtLeast1 = 10
    """Least number of calibration tokens on which a tested source feature is active; also for the
    targets of joint removals. Source features below the floor are counted."""
    features: Unique[AtLeast0] | None = None
    """Source features to test, in every pair, sampled by feature only; None for all."""
    seed: Seed = 0

    def calibrates(self, arms: Mapping[str, Arm]) -> bool:
        """Return True: activity and learned partners come from calibration texts."""
        return True

    def refusal(self, facts: PairFacts) -> str | None:
        """Refuse pairs whose target does not come after the source in the same model."""
        return forward_refusal(facts)

    def recorder(self, subject: Subject) -> Recorder | None:
        """Return None, since every pass needs the results of the one before it.

        Raises ``InputError``, before any pass, for settings that no match allows.
        """
        self._check(subject)
        return None

    def _check(self, subject: Subject) -> None:
        matches = [m for pair in subject.matches.pairs for m in subject.matches.of(pair).values()]
        most = max((int(torch.bincount(m.rows).max()) for m in matches if len(m.rows)), default=0)
        beyond = [k for k in self.partners if k > most]
        if len(beyond) == len(self.partners):
            raise InputError(
                f"evaluations.verify.partners={list(self.partners)}: no match of this run gives a "
                f"feature more than {most} partners: choose at most {most}, or an arm with more"
            )
        if beyond:
            log.info("verify: no match has %s partners", " or ".join(map(str, beyond)))
        for pair in subject.matches.pairs:
            n = subject.saes.facts[pair.source].n_features
            unknown = [feature for feature in self.features or () if feature >= n]
            if unknown:
                raise InputError(
                    f"evaluations.verify.features holds {unknown[0]}, but the SAE of "
                    f"{pair.source.name} has only the features 0 to {n - 1}"
                )

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return the tables of ``verify``; see docs/verify.md."""
        verified = self.record(subject)
        rows: dict[str, list[Row]] = {}
        with progress("tables of verify", len(verified), "pair") as bar:
            for pair in verified:
                with stage("verify", pair=pair.label):
                    for name, of_pair in self._pair_tables(subject, verified[pair]).items():
                        rows.setdefault(name, []).extend(of_pair)
                bar.advance()
        return Tables.of({name: of_all for name, of_all in rows.items() if of_all})

    def _pair_tables(self, subject: Subject, verified: Verified) -> dict[str, list[Row]]:
        """Return the rows of all tables of a pair."""
        assert subject.measures is not None
        tables = PairTables(
            subject, verified, subject.measures.replicates, self.partners, self.seed, self.floor,
            self.controls,
        )  # fmt: skip
        further = FurtherTables(tables)
        return {
            "verify": list(tables.scores()),
            "verify_strata": list(tables.strata()),
            "verify_injection": list(further.injection()),
            "verify_joint": list(further.joint()),
            "verify_counts": [tables.counts()],
            "matches": list(tables.matches()),
            **(self._details(tables, further) if self.details else {}),
        }

    def _details(self, tables: PairTables, further: FurtherTables) -> dict[str, list[Row]]:
        """Return the rows of the tables that ``details`` asks for."""
        return {
            "verify_contrasts": list(tables.contrasts()),
            "verify_direct": list(further.direct()),
            "verify_changes": list(further.changes()),
            **self._feature_tables(tables),
        }

    def _feature_tables(self, tables: PairTables) -> dict[str, list[Row]]:
        """Return the rows of tables on single features, and write a file of all features."""
        of_features = FeatureTables(tables)
        chosen = tuple(self.features or ())
        frame = of_features.save(tables.subject.output / "verify", chosen)
        by_weights, by_activity = weight_measures(tables), activity_measures(tables)
        measures = {name: by_weights[name] | by_activity.get(name, {}) for name in by_weights}
        return {
            "verify_verdicts": list(of_features.verdicts(frame)),
            "verify_features": list(of_features.chosen(frame, chosen)),
            "verify_correlations": list(of_features.correlations(measures)),
        }

    def judged_tables(self, subject: Subject, judgements: pd.DataFrame) -> Tables:
        """Return ``verify_judged``: the rank correlation of effects with the judge's scores."""
        assert subject.measures is not None
        if not self.details:
            return Tables()
        rows, level = [], subject.measures.replicates.level
        for pair in subject.matches.pairs:
            effects = pd.read_parquet(parquet_path(subject.output / "verify", pair))
            rows += list(judge_correlations(pair, effects, judgements, level))
        return Tables.of({"verify_judged": rows}) if rows else Tables()

    def record(self, subject: Subject) -> dict[Pair, Verified]:
        """Run the passes: activity and events, learned partners, and the interventions."""
        texts, calibration = subject.texts, subject.calibration
        assert texts is not None and calibration is not None
        pairs = subject.matches.pairs
        keys = dict.fromkeys(subject.twins[key] for pair in pairs for key in pair)
        sizes = Sizes(max(self.n_learning, N_MEDIAN), 0, self.seed)
        fitted = self._samples(subject, calibration, keys, sizes, "calibration events")
        n_token_events = self.n_token_events if self.features is None else 0
        sizes = Sizes(max(self.n_events, self.n_joint), n_token_events, self.seed)
        sampled = self._samples(subject, texts, keys, sizes, "events")
        tested = {pair: self._tested(subject, pair, fitted) for pair in pairs}
        plans = {
            subject.twin(pair): self._plan(subject, pair, tested[pair], fitted, sampled)
            for pair in pairs
        }
        learned = self._learned(subject, tested, fitted)
        recorder = AblationRecorder(subject.folder, plans, self.seed, subject.models)
        recording = texts.record(subject.saes, {"verify": recorder}, "verify")["verify"]
        return {
            pair: Verified(
                pair, subject.twin(pair), recording, fitted[subject.twins[pair.source]],
                fitted[subject.twins[pair.target]], tested[pair], learned.get(pair),
            )
            for pair in pairs
        }  # fmt: skip

    def _samples(
        self, subject: Subject, texts: TextPass, keys: Mapping[SaeKey, None], sizes: Sizes,
        label: str,
    ) -> dict[SaeKey, Sample]:  # fmt: skip
        recorder = EventRecorder(subject.folder, tuple(keys), sizes, subject.models)
        recording = texts.record(subject.saes, {"events": recorder}, label)["events"]
        return {key: recorder.sample(key, recording) for key in keys}

    def _tested(
        self, subject: Subject, pair: Pair, fitted: Mapping[SaeKey, Sample]
    ) -> torch.Tensor:
        """Return which source features are tested."""
        tested = fitted[subject.twins[pair.source]].n_active >= self.floor
        if self.features is not None:
            chosen = torch.zeros_like(tested)
            chosen[torch.tensor(self.features, dtype=torch.int64)] = True
            tested = tested & chosen
        return tested

    def _plan(
        self,
        subject: Subject,
        pair: Pair,
        tested: torch.Tensor,
        fitted: Mapping[SaeKey, Sample],
        sampled: Mapping[SaeKey, Sample],
    ) -> Interventions:
        """Return the interventions on a pair, on evaluation texts; refuse too few events."""
        source, target = (subject.twins[key] for key in pair)
        removals = _first(sampled[source].events, self.n_events).of_features(tested)
        if len(removals) < MIN_EVENTS:
            raise InputError(
                f"evaluations.verify: features of {pair.source.name} are active in only "
                f"{len(removals)} events on the evaluation texts, and at least {MIN_EVENTS} are "
                f"needed ({int(tested.sum())} features were active on {self.floor} calibration "
                "tokens or more): take more texts (dataset.n_texts), or lower "
                "evaluations.verify.floor"
            )
        injections = None
        if self.n_injections:
            features = torch.nonzero(tested).flatten()
            assert subject.texts is not None
            reader = subject.texts.readers[subject.models.of(pair.source)]
            injections = Tokens.of(reader.tokens).at_random(features, self.n_injections, self.seed)
            injections = injections.writing(fitted[source].median())
        targets, joint = None, {}
        if self.n_joint:
            events = sampled[target].events
            live = fitted[target].n_active >= self.floor
            targets = _first(events, self.n_joint).of_features(live)
            targets = targets.only(targets.by_feature)
            joint = {match.hash: match for match in _matches(subject, pair) if _has_joint(match)}
        means = fitted[source].mean.float() if self.controls else None
        return Interventions(removals, means, injections, targets, joint)

    def _learned(
        self,
        subject: Subject,
        tested: Mapping[Pair, torch.Tensor],
        fitted: Mapping[SaeKey, Sample],
    ) -> dict[Pair, np.ndarray]:
        """Return the target with the largest mean effect on calibration texts, by source feature.

        ``NONE`` for features without an effect on any target.
        """
        if not self.n_learning:
            return {}
        assert subject.calibration is not None
        plans = {}
        for pair, features in tested.items():
            events = fitted[subject.twins[pair.source]].events
            events = _first(events, self.n_learning).of_features(features)
            plans[subject.twin(pair)] = Interventions(events.only(events.by_feature))
        recorder = AblationRecorder(subject.folder, plans, self.seed, subject.models)
        recording = subject.calibration.record(
            subject.saes, {"learning": recorder}, "learn partners"
        )["learning"]
        learned = {}
        for pair in tested:
            n_source, n_target = (subject.saes.facts[key].n_features for key in pair)
            effects = Effects.read(recording, subject.twin(pair), REMOVE, n_target)
            learned[pair] = strongest(effects, n_source)
        return learned


def strongest(effects: Effects, n_source: int) -> np.ndarray:
    """Return the target of largest summed effect of each source feature; ``NONE`` without one."""
    keys = effects.features[effects.events] * effects.n_target + effects.targets
    pairs, numbers = np.unique(keys, return_inverse=True)
    sums = np.bincount(numbers, effects.D, len(pairs))
    order = np.lexsort((pairs, -sums))
    order = order[sums[order] > 0]
    features, first = np.unique(pairs[order] // effects.n_target, return_index=True)
    partners = np.full(n_source, NONE)
    partners[features] = pairs[order][first] % effects.n_target
    return partners


def _first(events: Events, most: int) -> Events:
    """Return the events with a sample by feature of at most ``most`` events of each feature."""
    counts = torch.bincount(events.features[events.by_feature])
    rank = torch.zeros(len(events), dtype=torch.int64)
    rank[events.by_feature] = torch.arange(int(counts.sum())) - torch.repeat_interleave(
        counts.cumsum(0) - counts, counts
    )
    by_feature = events.by_feature & (rank < most)
    events = Events(
        events.texts, events.positions, events.features, events.values, by_feature, events.by_token
    )
    return events.only(by_feature | events.by_token)


def _matches(subject: Subject, pair: Pair) -> list[Match]:
    """Return the matches of all pairs whose SAEs are those of this pair.

    Suites may share SAEs, and a composed match also depends on the other SAEs of its suite.
    """
    pairs = [other for other in subject.matches.pairs if subject.twin(other) == subject.twin(pair)]
    return [match for other in pairs for match in subject.matches.of(other).values()]


def _has_joint(match: Match) -> bool:
    """Return whether a target feature of a match has several sources."""
    return not match.inverse().one_partner

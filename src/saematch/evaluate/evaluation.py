"""What an evaluation is: one question put to the matches of a run, in one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from saematch.core.columns import Column
from saematch.core.match import Match
from saematch.core.pairs import Pair, Refusal, SaeKey
from saematch.core.tables import Tables
from saematch.evaluate.counts import Counts
from saematch.evaluate.measures import Measures
from saematch.matching.arm import Arm
from saematch.matching.matches import MatchSet
from saematch.sae.recorders import Models, Recorder, Recording
from saematch.sae.sites import is_skippable
from saematch.sae.sources.source import SaeSource
from saematch.sae.suites import SaeFacts, SaeShelf


class PairFacts(NamedTuple):
    """A pair of SAEs before they are compared, without their weights."""

    pair: Pair
    source: SaeFacts
    target: SaeFacts
    models: Models


@dataclass(frozen=True)
class Subject:
    """The matches of a run and all that its evaluations may look at."""

    saes: SaeShelf
    matches: MatchSet
    arms: Mapping[str, Arm]
    sources: Mapping[str, SaeSource]
    """Where the SAEs of each suite come from."""
    models: Models = field(default_factory=Models)
    refused: Sequence[Refusal] = ()
    folder: Path = Path("sums")
    """Folder of files of recorders that runs share."""
    measures: Measures | None = None
    """Text sets and the intervals over their texts; None in a run without texts."""
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    """What each evaluation recorded, by the evaluation's name."""
    counts: Counts | None = None
    """Which features were active together, if the run counted that."""

    def without(self, evaluation: str) -> Subject:
        """Return the subject without the pairs that an evaluation leaves out."""
        left_out = {refusal.pair for refusal in self.refused if refusal.evaluation == evaluation}
        pairs = set(self.matches.pairs) - left_out
        return replace(self, matches=self.matches.only(pairs))

    def truth(self, pair: Pair) -> Match | None:
        """Return the true match of a pair, None if it is unknown."""
        if not pair.within_suite:
            return None
        first, last = sorted([pair.source.layer, pair.target.layer])
        match = self.sources[pair.source.suite].truth(first, last)
        return match if match is None or first == pair.source.layer else match.inverse()

    @cached_property
    def twins(self) -> dict[SaeKey, SaeKey]:
        """The key that stands for each SAE that can be applied to hidden states.

        Suites may share SAEs: the first key of an SAE stands for it in recordings.
        """
        applicable = [key for key, sae in self.saes.facts.items() if is_skippable(sae.origin)]
        return self.models.twins(self.saes.only(applicable))

    def twin(self, pair: Pair) -> Pair:
        """Return the two SAEs of a pair under the keys that stand for them."""
        return Pair(self.twins[pair.source], self.twins[pair.target])


class Evaluation:
    """Base class of evaluations: specs whose fields are their settings.

    A run asks in this order: ``refusals`` before any work, ``recorder`` after matching, ``tables``
    after the pass over the texts. An evaluation overrides what it needs.
    """

    columns: ClassVar[tuple[Column, ...]] = ()
    """Definitions of the metrics in its tables."""
    reads_texts: ClassVar[bool] = False
    """Whether it needs the language model and texts."""
    explains: ClassVar[bool] = False
    """Whether it needs explanations of features."""
    one_partner: ClassVar[str] = ""
    """Why it needs matches with at most one partner a feature; empty if it takes any match."""

    def check_sources(self, sources: Mapping[str, SaeSource]) -> None:
        """Raise ``InputError`` for suites that it cannot use, before SAEs are loaded."""

    def check_saes(self, saes: SaeShelf) -> None:
        """Raise ``InputError`` for SAEs that the evaluation cannot use, before any work."""

    def refusal(self, facts: PairFacts) -> str | None:
        """Return why the evaluation leaves out a pair, None if it takes the pair."""

    def refusals(
        self, pairs: Sequence[PairFacts], refused: Sequence[Refusal]
    ) -> Iterable[tuple[Pair, str]]:
        """Yield the pairs that the evaluation leaves out, with the reason.

        ``refused`` holds what the run leaves out already: pairs that are not matched, and those of
        evaluations that keep this default. By default, ``refusal`` decides for each pair that is
        matched.
        """
        unmatched = {r.pair for r in refused if r.evaluation == "matching" and r.arm is None}
        for facts in pairs:
            if facts.pair not in unmatched and (reason := self.refusal(facts)):
                yield facts.pair, reason

    def recorder(self, subject: Subject) -> Recorder | None:
        """Return what to record in the pass over the texts; by default nothing."""

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return its tables.

        Columns of a table that the run has already, such as ``matches``, are joined to its rows by
        the key columns of both.
        """
        return Tables()

"""Base class of evaluations, each of which answers one question about the matches of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import pandas as pd

from saematch.core.columns import Column
from saematch.core.match import Match
from saematch.core.pairs import Pair, Refusal, SaeKey
from saematch.core.tables import Tables
from saematch.evaluate.counts import Counts
from saematch.evaluate.measures import Measures
from saematch.matching.arm import Arm
from saematch.matching.explained import Explained
from saematch.matching.matches import MatchSet
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recorder, Recording
from saematch.sae.sites import is_skippable, skipping_refusal
from saematch.sae.sources.source import SaeSource
from saematch.sae.suites import SaeFacts, SaeShelf


class PairFacts(NamedTuple):
    """Facts about a pair of SAEs that need no weights."""

    pair: Pair
    source: SaeFacts
    target: SaeFacts
    models: Models

    def site_refusal(self) -> str | None:
        """Return why the SAEs cannot be applied to hidden states; None if they can."""
        return skipping_refusal(self.source.origin) or skipping_refusal(self.target.origin)


def forward_refusal(facts: PairFacts) -> str | None:
    """Return why no block leads from the source to the target; None if there is one."""
    source, target = facts.pair
    if facts.models.of(source) != facts.models.of(target):
        return f"{source.suite} and {target.suite} have SAEs of two language models"
    if source.layer == target.layer:
        return f"both SAEs are of layer {source.layer}, so no block lies between them"
    if source.layer > target.layer:
        return f"layer {target.layer} comes before layer {source.layer}, so no block leads to it"
    return None


@dataclass(frozen=True)
class Subject:
    """The matches of a run, and the data that evaluations may use."""

    saes: SaeShelf
    matches: MatchSet
    arms: Mapping[str, Arm]
    sources: Mapping[str, SaeSource]
    """Source of the SAEs of each suite."""
    models: Models = field(default_factory=Models)
    refused: Sequence[Refusal] = ()
    folder: Path = Path("sums")
    """Folder for the files of recorders, which runs share."""
    measures: Measures | None = None
    """Text sets and the intervals over their texts; None in a run without texts."""
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    """Recording of each evaluation, by the evaluation's name."""
    counts: Counts | None = None
    """Counts of features that were active together, if the run counted them."""
    texts: TextPass | None = None
    """Pass over the evaluation texts, for evaluations that need several; None without texts."""
    calibration: TextPass | None = None
    """Pass over the calibration texts; None if the run fits nothing."""
    output: Path = Path("evaluations")
    """Folder in the run's folder for files of evaluations."""
    explained: Explained | None = None
    """Explanations of the features, for evaluations that set ``explains``."""

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
        """Key in recordings of each SAE that can be applied to hidden states.

        Suites may share SAEs; recordings use the first key of such an SAE.
        """
        applicable = [key for key, sae in self.saes.facts.items() if is_skippable(sae.origin)]
        return self.models.twins(self.saes.only(applicable))

    def twin(self, pair: Pair) -> Pair:
        """Return the pair with the keys that recordings use."""
        return Pair(self.twins[pair.source], self.twins[pair.target])


class Evaluation:
    """Base class of evaluations: specs whose fields are their settings.

    A run calls ``check_server``, ``check_sources``, ``check_saes`` and ``refusals`` before any
    work, ``recorder`` after matching, ``tables`` after the pass over the texts, and
    ``summary_tables`` at the end. An evaluation overrides the methods that it needs.
    """

    columns: ClassVar[tuple[Column, ...]] = ()
    """Definitions of the metrics in its tables."""
    reads_texts: ClassVar[bool] = False
    """Whether it needs the language model and texts."""
    explains: ClassVar[bool] = False
    """Whether it needs explanations of features, as ``Subject.explained`` or as columns."""
    one_partner: ClassVar[str] = ""
    """Reason why it needs matches with at most one partner per feature, as a phrase after
    ``which``; empty if it accepts any match."""

    def calibrates(self, arms: Mapping[str, Arm]) -> bool:
        """Return whether it fits quantities to calibration texts; the run then splits its texts."""
        return False

    def check_sources(self, sources: Mapping[str, SaeSource]) -> None:
        """Raise ``InputError``, before SAEs are loaded, for suites that cannot be used."""

    def check_server(self, replies: Path) -> None:
        """Raise ``InputError``, before any work, for a server that does not answer.

        ``replies`` is the file of stored replies.
        """

    def check_saes(self, saes: SaeShelf) -> None:
        """Raise ``InputError`` for SAEs that the evaluation cannot use, before any work."""

    def refusal(self, facts: PairFacts) -> str | None:
        """Return why the evaluation leaves out a pair; None if it includes the pair."""

    def refusals(
        self, pairs: Sequence[PairFacts], refused: Sequence[Refusal]
    ) -> Iterable[tuple[Pair, str]]:
        """Yield the pairs that the evaluation leaves out, with the reason.

        ``refused`` has the pairs that are not matched, and the refusals of evaluations that keep
        this default. By default, ``refusal`` decides for each matched pair. An
        evaluation that reads texts also leaves out SAEs that do not read the residual stream, since
        a pass over the texts has no other hidden states.
        """
        unmatched = {r.pair for r in refused if r.evaluation == "matching" and r.arm is None}
        for facts in pairs:
            if facts.pair in unmatched:
                continue
            reason = facts.site_refusal() if self.reads_texts else None
            if reason := reason or self.refusal(facts):
                yield facts.pair, reason

    def recorder(self, subject: Subject) -> Recorder | None:
        """Return the recorder for the pass over the texts; by default None."""

    def record(self, subject: Subject) -> object:
        """Make further passes over the texts, which ``tables`` needs; by default none.

        Processes that share the work of a run call it. Without it, only the run itself makes the
        passes of ``tables``.
        """

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return the tables of the evaluation; ``recording`` is that of its recorder.

        If the run already has a table, such as ``matches``, its rows get the new columns. Rows are
        joined by the key columns that both frames have.
        """
        return Tables()

    def judged_tables(self, subject: Subject, judgements: pd.DataFrame) -> Tables:
        """Return further tables of a run with a judge; ``judgements`` has a row for each answer."""
        return Tables()

    def summary_tables(self, subject: Subject, tables: Tables) -> Tables:
        """Return tables made from those of all evaluations and of the judge."""
        return Tables()

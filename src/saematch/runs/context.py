"""The state of a run: its inputs and the results of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saematch.chat.questions import Judge
from saematch.core.pairs import Refusal
from saematch.core.results import Results
from saematch.evaluate.counts import Counts
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.measures import Measures
from saematch.explain.explanations import Explanations
from saematch.matching.explained import Explained
from saematch.matching.matches import MatchSet
from saematch.runs.checks import Chosen
from saematch.runs.experiment import Experiment
from saematch.runs.tracking import Tracker
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recording
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader


@dataclass
class Context:
    """State that the stages of a run share; each stage sets some of the fields."""

    experiment: Experiment
    folder: Path
    results: Results
    judges: list[Judge | None] = field(default_factory=list)
    chosen: Chosen = field(default_factory=lambda: Chosen({}, (), ()))
    saes: SaeShelf = field(default_factory=lambda: SaeShelf.of({}))
    readers: Mapping[str, Reader] = field(default_factory=dict)
    """Language models with their texts, by label; the run's own model has the label ``""``."""
    text_facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Everything that determines the texts of each text set."""
    refused: tuple[Refusal, ...] = ()
    """Matches and evaluations that the run leaves out."""
    tracker: Tracker | None = None
    matches: MatchSet = field(default_factory=lambda: MatchSet((), {}))
    measures: Measures | None = None
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    """Recordings of the pass over the texts, by evaluation."""
    explains: bool = False
    """Whether the run explains features and judges the explanations."""
    explanations: Explanations | None = None

    @property
    def replies(self) -> Path:
        """File of the replies of LLMs and embedding models, which runs share."""
        return self.cache / "judge.sqlite"

    @property
    def cache(self) -> Path:
        """Folder of files that runs share; a folder in the run's own folder if it shares none."""
        cache = self.experiment.cache
        return self.folder / "cache" if cache is None else Path(cache)

    @property
    def models(self) -> Models:
        """Language model of each suite."""
        return Models(self.experiment.model_labels)

    @property
    def text_pass(self) -> TextPass:
        """Pass over the run's texts."""
        return TextPass(self.readers, self.models, self.experiment.trainer)

    @property
    def calibration_pass(self) -> TextPass:
        """Pass over the calibration texts."""
        readers = {
            label: reader._replace(tokens=reader.calibration, calibration={})
            for label, reader in self.readers.items()
        }
        return TextPass(readers, self.models, self.experiment.trainer)

    def subject(self) -> Subject:
        """Return the matches, and the data that evaluations may use."""
        subject = Subject(
            self.saes, self.matches, self.experiment.arms, self.chosen.suites, self.models,
            self.refused, self.cache / "sums", self.measures, self.recordings,
            texts=self.text_pass if self.readers else None,
            calibration=self.calibration_pass if self.experiment.calibrates else None,
            output=self.folder / "evaluations", explained=self._explained(),
        )  # fmt: skip
        name = self.experiment.counting
        if self.measures is None or name is None or name not in self.recordings:
            return subject
        sums = self.recordings[name].sums()
        return replace(
            subject, counts=Counts(sums, subject.twins, self.models, self.measures.replicates)
        )

    def _explained(self) -> Explained | None:
        if self.explanations is None:
            return None
        return Explained(self.explanations, self.saes.facts, self.replies)

"""Evaluate matches without a run: record what evaluations need, and return their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from saematch.core.tables import Tables
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.counts import Counts
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.measures import Measures
from saematch.lm.hooks import LanguageModel
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.matches import MatchSet
from saematch.matching.objectives.parts import Parts
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Forward, Models, Recording
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec

CPU = TrainerSpec(accelerator="cpu")
UNKNOWN = SaeFolders("nowhere/{layer}")
"""SAEs whose true match nobody knows."""


def subject_of(
    saes: Saes,
    matches: MatchSet,
    arms: Mapping[str, Arm] | None = None,
    folder: Path = Path("sums"),
) -> Subject:
    """Return what evaluations look at; ``folder`` is that of files of recorders."""
    if arms is None:
        arms = dict.fromkeys(matches.by_arm, Arm("threshold", Parts(), Optimal()))
    sources = dict.fromkeys((key.suite for key in saes), UNKNOWN)
    return Subject(SaeShelf.of(saes), matches, arms, sources, folder=folder)


def recorded(
    subject: Subject,
    evaluations: Sequence[Evaluation],
    lm: LanguageModel,
    tokens: Mapping[str, Sequence[TokenBatch]],
    trainer: TrainerSpec = CPU,
) -> Subject:
    """Return the subject with what evaluations record in one pass, by their types' names."""
    recorders = {type(e).__name__: e.recorder(subject) for e in evaluations}
    reader = Reader(lm, {name: tuple(batches) for name, batches in tokens.items()})
    recordings = TextPass({"": reader}, Models(), trainer).record(subject.saes, recorders, "t")
    measures = Measures.of(tokens, Intervals())
    subject = replace(subject, recordings=recordings, measures=measures)
    counts = recordings.get(CoActivation.__name__)
    if counts is None:
        return subject
    reading = Counts(counts.sums(), subject.twins, subject.models, measures.replicates)
    return replace(subject, counts=reading)


def split_texts(
    subject: Subject,
    lm: LanguageModel,
    tokens: Mapping[str, Sequence[TokenBatch]],
    calibration: Mapping[str, Sequence[TokenBatch]],
) -> Subject:
    """Return the subject with passes over evaluation and calibration texts."""
    passes = [
        TextPass({"": Reader(lm, {name: tuple(b) for name, b in part.items()})}, Models(), CPU)
        for part in (tokens, calibration)
    ]
    return replace(
        subject,
        texts=passes[0],
        calibration=passes[1],
        measures=Measures.of(tokens, Intervals()),
        output=subject.folder.parent / "evaluations",
    )


def tables_of(subject: Subject, evaluation: Evaluation) -> Tables:
    """Return the tables of an evaluation of a recorded subject."""
    return evaluation.tables(subject, subject.recordings.get(type(evaluation).__name__))


def sums_of(recording: Recording) -> dict[str, torch.Tensor]:
    """Return all sums that were recorded of the text set ``t``, by name."""
    sums, names = recording.sums()["t"], set()
    for first, *_ in recording.files["t"]:
        with safe_open(first, framework="pt") as file:
            names |= set(file.keys())
    return {name: sums[name] for name in sorted(names)}


def forward_of(lm: LanguageModel, batch: TokenBatch, saes: Saes) -> Forward:
    """Return the forward of one batch, as a pass hands it to recorders."""
    layers = tuple(sorted({key.layer for key in saes}))
    with torch.inference_mode():
        hidden, final = lm.capture(batch.ids, layers)
    states = {layer: x[batch.counts].float() for layer, x in hidden.items()}
    return Forward(lm, batch, "", Models(), dict(saes), hidden, final, {"": states})

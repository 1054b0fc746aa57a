"""The stages of a run: load, match, read texts, evaluate, judge; or load and train."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace

from saematch.core.errors import InputError, stage
from saematch.core.memory import memory_shortage
from saematch.core.tables import Tables, frame_of
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.evaluate.match_tables import MatchTables
from saematch.evaluate.means import weight_means
from saematch.evaluate.measures import Measures
from saematch.judge.connect import connect
from saematch.judge.judging import explain_tables, explainers, judge_matches
from saematch.judge.means import judge_means
from saematch.judge.scores import columns_of, judge_tables, score_matches
from saematch.lm.source import OpenedModel
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.objective import ExplanationObjective
from saematch.matching.store import MatchStore
from saematch.runs.checks import (
    check_fit,
    check_saes,
    choose_layers,
    choose_saes,
    load_saes,
    load_tokens,
    of_label,
    refuse_embedded_model,
)
from saematch.runs.context import Context
from saematch.runs.evidence import CONTEXTS, evidence, inputs_of
from saematch.runs.experiment import Experiment
from saematch.runs.features import save_features
from saematch.runs.opening import log_choice, log_device, log_work
from saematch.runs.refusals import check_texts, find_refusals, no_explanations, token_refusals
from saematch.sae.recorders import Recorder
from saematch.sae.stand_in import ActivationQuantile, DecoderNorm, by_activation, by_decoder_norm
from saematch.texts.readers import Reader
from saematch.texts.text_pass import check_devices
from saematch.texts.token_cache import resolve_texts
from saematch.training.collect import collect
from saematch.training.train_saes import COLUMNS as SAE_COLUMNS
from saematch.training.train_saes import SaeTraining, train_saes

log = logging.getLogger(__name__)

MATCHING = "matching and evaluating SAEs"


@stage("load")
@memory_shortage("loading the SAEs and texts", "lower sae_memory or take fewer texts")
def load(context: Context) -> None:
    """Load the inputs of the run; raises ``InputError`` if they do not fit together."""
    experiment = context.experiment
    experiment.logger.check()
    _connect(context)
    if experiment.trains or experiment.reads_texts:
        check_devices(experiment.trainer)
    device = experiment.trainer.device_type
    if experiment.trains:
        log_device(experiment)
        context.readers = {"": Reader(experiment.model.load(device), {})}
        return
    _check_servers(context)
    context.chosen = choose_saes(experiment)
    log_device(experiment)
    log_choice(context.chosen, list(experiment.arms))
    labels = experiment.model_labels
    models: dict[str, OpenedModel] = {}
    if experiment.reads_texts:  # refuses a gated model and missing texts before it loads SAEs
        refuse_embedded_model(experiment, context.chosen)
        texts = resolve_texts(experiment.dataset, context.cache / "tokens")
        models[""] = experiment.model.open(device)
        models |= {
            label: experiment.models[label].open(device) for label in dict.fromkeys(labels.values())
        }
    context.saes = load_saes(context.chosen, experiment.sae_memory, labels)
    if isinstance(experiment.stand_in, DecoderNorm):
        context.saes = context.saes.dressed(by_decoder_norm)
    context.refused = find_refusals(experiment, context.chosen.pairs, context.saes)
    context.explains = _explains(context)
    measured = isinstance(experiment.stand_in, ActivationQuantile)
    if not measured:
        check_saes(experiment, context.saes)
    readers: dict[str, Reader] = {}
    for label, model in models.items():
        check_fit(model, of_label(context.saes, label, labels))
        lm = model.load()
        tokens = load_tokens(experiment, texts, lm)
        readers[label] = Reader(lm, tokens.batches, tokens.calibration)
        context.text_facts = context.text_facts or tokens.facts
    context.readers = readers
    if experiment.evaluates_texts:
        context.refused += token_refusals(
            experiment, context.chosen.pairs, readers, context.refused
        )
        check_texts(experiment, context.chosen.pairs, context.refused)
    if isinstance(experiment.stand_in, ActivationQuantile):
        folder = context.cache / "activations"
        sample = context.calibration_pass if experiment.calibrates else context.text_pass
        context.saes = by_activation(experiment.stand_in, context.saes, sample, folder)
        check_saes(experiment, context.saes)
    log_work(context)


def _connect(context: Context) -> None:
    """Connect to the judges; close the open ones if another cannot be reached."""
    experiment, store = context.experiment, context.replies
    with ExitStack() as opened:
        judges = []
        for spec in (experiment.judge, experiment.second_judge):
            judges.append(connect(spec, store))
            if judges[-1] is not None:
                opened.callback(judges[-1].close)
        judge, second = judges
        if judge is not None and second is not None and judge.model == second.model:
            raise InputError(
                f"both judges are called {judge.model}, so their answers cannot be distinguished: "
                "choose another second_judge.model"
            )
        opened.pop_all()
    context.judges = judges


def _explains(context: Context) -> bool:
    """Return whether the run explains features; log why not, if the user chose word overlap."""
    reason = no_explanations(context.experiment, context.saes)
    overrides = context.results.config.get("overrides", ())
    if reason and any(setting.startswith(("judge=overlap", "judge.")) for setting in overrides):
        log.info("judge=overlap judges nothing: %s", reason)
    return not reason


def _check_servers(context: Context) -> None:
    """Check the servers that objectives and evaluations ask, such as models of embeddings."""
    for name, arm in context.experiment.arms.items():
        if isinstance(arm.objective, ExplanationObjective):
            with stage("load", arm=name):
                arm.objective.check(context.replies)
    for name, evaluation in context.experiment.evaluations.items():
        with stage("load", evaluation=name):
            evaluation.check_server(context.replies)


@stage("train")
@memory_shortage("training SAEs", "lower training.batch or training.n_features")
def train(context: Context) -> None:
    """Collect hidden states, and train SAEs on them if that is the task."""
    experiment, lm = context.experiment, context.readers[""].lm
    layers = choose_layers(experiment, lm)
    trainer = experiment.trainer
    store = collect(lm, experiment.dataset, layers, experiment.collection, trainer, context.cache)
    context.results.provenance["hidden_states"] = {"folder": str(store.folder), **store.facts}
    if experiment.task == "train_saes":
        assert context.tracker is not None
        device = "cuda" if trainer.device_type in ("gpu", "cuda") else "cpu"
        training = SaeTraining(store, experiment.training, experiment.collection, device)
        folder = context.folder / "saes"
        tables = train_saes(training, layers, folder, context.tracker.log)
        context.results.tables |= Tables.of(tables)
        context.results.tables.define(SAE_COLUMNS)


@memory_shortage(MATCHING, "lower sae_memory")
@stage("match")
def match(context: Context) -> None:
    """Match every pair in every arm, and compute the metrics that need only weights."""
    tables = context.results.tables
    if context.refused:
        tables.add("refused", frame_of([refusal.row() for refusal in context.refused]))
    find_matches(context)
    tables.join(MatchTables().tables(context.subject(), None))
    tables.define(MatchTables.columns)


@memory_shortage(MATCHING, "lower sae_memory")
@stage("match")
def find_matches(context: Context) -> None:
    """Match every pair in every arm, or read the matches that are kept."""
    store = MatchStore(context.cache / "matches", evidence(context))
    context.matches = match_pairs(
        context.saes, context.chosen.pairs, context.experiment.arms, store,
        context.folder / "matches",
    )  # fmt: skip
    context.results.provenance["matches"] = dict(store.counts)


@memory_shortage(MATCHING, "lower sae_memory or trainer.batch_size")
@stage("read texts")
def read_texts(context: Context) -> None:
    """Record the data for evaluations and explanations in one pass over the texts."""
    experiment = context.experiment
    _record(context)
    if context.explains:
        inputs = inputs_of(context, context.text_pass, "contexts")
        inputs = replace(inputs, recording=context.recordings.get(CONTEXTS))
        context.explanations = experiment.explain.open(context.saes, inputs)


def _record(context: Context) -> None:
    experiment = context.experiment
    if experiment.evaluates_texts:
        context.measures = Measures.of(context.readers[""].tokens, experiment.intervals)
    subject = context.subject()
    recorders: dict[str, Recorder | None] = {}
    for name, evaluation in _with_pairs(experiment, subject).items():
        recorders[name] = evaluation.recorder(subject.without(name))
        if recorders[name] is not None and not evaluation.reads_texts:
            raise InputError(
                f"evaluations.{name} has a recorder, so {type(evaluation).__name__} must set "
                "reads_texts = True"
            )
    inputs = inputs_of(context, context.text_pass, "contexts")
    if context.explains:
        recorders[CONTEXTS] = experiment.explain.recorder(context.saes, inputs)
    needed = {name: recorder for name, recorder in recorders.items() if recorder is not None}
    if needed:
        context.recordings = context.text_pass.record(context.saes, needed, "read texts")


@memory_shortage(MATCHING, "lower sae_memory or trainer.batch_size")
@stage("read texts")
def share_passes(context: Context) -> None:
    """Make all passes over the texts that the run needs, together with other processes."""
    _record(context)
    subject = context.subject()
    for name, evaluation in _with_pairs(context.experiment, subject).items():
        with stage(name, evaluation=name):
            evaluation.record(subject.without(name))


def _with_pairs(experiment: Experiment, subject: Subject) -> dict[str, Evaluation]:
    """Return the evaluations without those on texts that leave out every pair."""
    return {
        name: evaluation
        for name, evaluation in experiment.evaluations.items()
        if subject.without(name).matches.pairs or not evaluation.reads_texts
    }


@memory_shortage(MATCHING, "lower sae_memory or trainer.batch_size")
@stage("evaluate")
def evaluate(context: Context) -> None:
    """Compute the tables of every evaluation, and add them to the results."""
    subject, tables = context.subject(), context.results.tables
    for name, evaluation in _with_pairs(context.experiment, subject).items():
        with stage(name, evaluation=name):
            recording = context.recordings.get(name)
            tables.join(evaluation.tables(subject.without(name), recording))
            tables.define(evaluation.columns)
    measured = [] if subject.measures is None else subject.measures.mean_rows()
    rows = weight_means(tables, {str(row["metric"]) for row in measured})
    tables["means"] = frame_of(rows + measured)


@stage("judge")
def judge(context: Context) -> None:
    """Ask the judges about the explanations of matched features."""
    if context.explanations is None:
        return
    experiment, results = context.experiment, context.results
    first, second = context.judges
    judgements = []
    if first is not None:
        judgements = judge_matches(
            context.matches, experiment.pairing.chains, experiment.judging, context.explanations,
            (first, second), results.tables,
        )  # fmt: skip
        results.tables.join(judge_tables(judgements, context.saes, experiment.intervals))
        results.tables.define(columns_of(first))
        score_matches(results.tables)
        subject = context.subject()
        for name, evaluation in _with_pairs(experiment, subject).items():
            with stage(name, evaluation=name):
                frame = results.tables.get("judgements", frame_of([]))
                results.tables.join(evaluation.judged_tables(subject.without(name), frame))
        results.provenance["explanations"] = explainers(judgements)
        means = results.tables.rows("means") + judge_means(results.tables)
        results.tables["means"] = frame_of(means)
    explain_tables(results.tables, context.explanations, judgements)
    results.provenance["judges"] = [chat.provenance() for chat in context.judges if chat]


@memory_shortage(MATCHING, "lower intervals.n_replicates")
@stage("summarise")
def summarise(context: Context) -> None:
    """Compute the tables that evaluations make from all other tables."""
    subject, tables = context.subject(), context.results.tables
    for name, evaluation in _with_pairs(context.experiment, subject).items():
        with stage(name, evaluation=name):
            tables.join(evaluation.summary_tables(subject.without(name), tables))


@memory_shortage(MATCHING, "lower sae_memory")
@stage("write features")
def write_features(context: Context) -> None:
    """Write the facts of single features into the run's folder."""
    save_features(context)


STAGES = {
    "match": (match, read_texts, evaluate, judge, summarise, write_features),
    "collect": (train,),
    "train_saes": (train,),
}
"""Stages of each task, after ``load``."""

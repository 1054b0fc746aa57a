"""The stages of a run: load, match, evaluate, judge; or load and train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saematch.chat.asking import Chat
from saematch.chat.questions import Judge
from saematch.core.errors import stage
from saematch.core.match import Match
from saematch.core.memory import memory_shortage
from saematch.core.pairs import POOLED, Pair, Refusal, pair_of
from saematch.core.results import Results, Row
from saematch.evaluate.features import example_rows, histogram_rows
from saematch.evaluate.match_tables import exact_arms, live_recall, match_rows
from saematch.evaluate.means import mean_rows
from saematch.evaluate.paths import path_rows
from saematch.evaluate.plan import evaluate_texts, plan_splices
from saematch.evaluate.planted import planted_rows
from saematch.evaluate.tables import Tables
from saematch.explain.contexts import TextPass
from saematch.explain.explanations import Explanations, Means
from saematch.judge.judging import explain_tables, explainers, judge_matches
from saematch.judge.scores import judge_tables, score_matches
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import OpenedModel
from saematch.matching.matches import MatchSet, match_pairs
from saematch.matching.store import MatchStore
from saematch.run.checks import (
    Chosen,
    RunTexts,
    check_saes,
    choose_layers,
    choose_saes,
    load_saes,
    load_tokens,
    of_label,
)
from saematch.run.experiment import ON_TEXTS, Experiment
from saematch.run.refusals import check_counted, find_refusals, token_refusals
from saematch.run.tracking import Tracker
from saematch.sae.sources.source import SaeSource
from saematch.sae.stand_in import (
    ActivationQuantile,
    DecoderNorm,
    by_activation,
    by_decoder_norm,
)
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.training.collect import collect
from saematch.training.train_saes import SaeTraining, train_saes


class Inputs(NamedTuple):
    """What a run begins with."""

    chosen: Chosen
    saes: SaeShelf
    lm: LanguageModel | None
    texts: RunTexts
    refused: tuple[Refusal, ...] = ()
    """What the run leaves out."""
    others: Mapping[str, Reader] = {}
    """The language models of suites that have their own, with the texts, by label."""


@stage("load")
@memory_shortage("loading the SAEs and texts", "lower sae_memory or take fewer texts")
def load(experiment: Experiment, folder: Path) -> Inputs:
    """Load all that the run needs, and refuse what does not go together."""
    nothing = RunTexts({}, {})
    if experiment.trains:
        lm = experiment.model.load()
        return Inputs(Chosen({}, (), ()), SaeShelf.of({}), lm, nothing)
    chosen = choose_saes(experiment)
    labels = experiment.model_labels
    opened: dict[str, OpenedModel] = {}
    if experiment.reads_texts:  # a model may be gated: before SAEs
        opened = {"": experiment.model.open()}
        of_suites = dict.fromkeys(labels.values())
        opened |= {label: experiment.models[label].open() for label in of_suites}
    saes = load_saes(chosen, experiment.sae_memory, labels)
    if isinstance(experiment.stand_in, DecoderNorm):
        saes = saes.dressed(by_decoder_norm)
    refused = find_refusals(experiment, chosen.pairs, saes)
    measured = isinstance(experiment.stand_in, ActivationQuantile)
    if not measured:
        check_saes(experiment, saes)
    if not opened:
        return Inputs(chosen, saes, None, nothing, refused)
    cache = cache_of(experiment, folder)
    texts: dict[str, RunTexts] = {}
    readers: dict[str, Reader] = {}
    for label, model in opened.items():
        lm, own = model.load(), of_label(saes, label, labels)
        texts[label] = load_tokens(experiment, model.source, lm, own, cache / "tokens")
        readers[label] = Reader(lm, texts[label].batches)
    if ON_TEXTS & set(experiment.evaluations):
        refused += token_refusals(chosen.pairs, readers, labels, refused)
        check_counted(chosen.pairs, refused)
    if measured:
        for label, reader in readers.items():
            about = (experiment.stand_in, saes, *reader, experiment.trainer)
            keys = list(of_label(saes, label, labels))
            saes = by_activation(*about, cache / "activations", keys)
        check_saes(experiment, saes)
    first = readers.pop("")
    return Inputs(chosen, saes, first.lm, texts[""], refused, readers)


@stage("train")
@memory_shortage("training SAEs", "lower training.batch or training.n_features")
def train(
    experiment: Experiment, inputs: Inputs, folder: Path, tracker: Tracker, results: Results
) -> None:
    """Keep hidden states, and train SAEs on them."""
    lm, trainer = inputs.lm, experiment.trainer
    assert lm is not None
    layers = choose_layers(experiment, lm)
    cache = cache_of(experiment, folder)
    store = collect(lm, experiment.dataset, layers, experiment.collection, trainer, cache)
    results.provenance["hidden_states"] = {"folder": str(store.folder), **store.about}
    if experiment.task == "train_saes":
        device = "cuda" if trainer.device_type in ("gpu", "cuda") else "cpu"
        training = SaeTraining(store, experiment.training, experiment.collection, device)
        results.tables |= train_saes(training, layers, folder / "saes", tracker.log)


@memory_shortage("matching and evaluating SAEs", "lower sae_memory or trainer.batch_size")
def compare(
    experiment: Experiment,
    inputs: Inputs,
    judges: list[Judge | None],
    folder: Path,
    results: Results,
) -> None:
    """Match SAEs, and do with the matches what the run is for."""
    saes, lm = inputs.saes, inputs.lm
    suites, refused = inputs.chosen.suites, inputs.refused
    if refused:
        results.tables["refused"] = [refusal.row() for refusal in refused]
    explanations = _explain(experiment, inputs, judges[0], folder)
    matches = _match(experiment, saes, inputs.chosen, folder, results)
    tables = None
    if lm is not None and ON_TEXTS & set(experiment.evaluations):
        tables = _evaluate(experiment, inputs, matches, folder, results)
    if "features" in experiment.evaluations:
        comparable = _without(matches, refused, "features")
        results.tables["feature_mse_histogram"] = histogram_rows(saes, comparable)
        results.tables["features"] = example_rows(saes, comparable)
    if "paths" in experiment.evaluations:
        results.tables["paths"] = path_rows(
            saes, _without(matches, refused, "paths"), experiment.paths, tables
        )
    if "planted" in experiment.evaluations:
        results.tables["planted"] = planted_rows(
            saes, suites, _without(matches, refused, "planted"), experiment.arms
        )
    if explanations is not None:
        _judge(experiment, saes, matches, explanations, judges, results)
    results.tables["means"] = mean_rows(results.tables, None if tables is None else tables.means)


def _without(matches: MatchSet, refused: Sequence[Refusal], evaluation: str) -> MatchSet:
    """Return the matches of the pairs that an evaluation does not refuse."""
    left_out = {refusal.pair for refusal in refused if refusal.evaluation == evaluation}
    return matches.only(set(matches.pairs) - left_out)


@stage("match")
def _match(
    experiment: Experiment,
    saes: SaeShelf,
    chosen: Chosen,
    folder: Path,
    results: Results,
) -> MatchSet:
    store = MatchStore(cache_of(experiment, folder) / "matches")
    matches = match_pairs(saes, chosen.pairs, experiment.arms, store, folder / "matches")
    results.provenance["matches"] = dict(store.counts)
    results.tables["matches"] = match_rows(
        saes,
        matches,
        _truth_of(chosen.suites),
        exact_arms(experiment.arms),
    )
    results.tables["layers"] = [
        {
            **key._asdict(),
            "n_features": sae.n_features,
            "stated_l0": sae.origin.mean_l0,
            **sae.thresholds,
        }
        for key, sae in saes.facts.items()
    ]
    return matches


def _truth_of(suites: dict[str, SaeSource]) -> Callable[[Pair], Match | None]:
    def truth(pair: Pair) -> Match | None:
        """Return the known match, None where nobody knows it."""
        if not pair.within_suite:
            return None
        first, last = sorted([pair.source.layer, pair.target.layer])
        match = suites[pair.source.suite].truth(first, last)
        return match if match is None or first == pair.source.layer else match.inverse()

    return truth


@stage("evaluate")
def _evaluate(
    experiment: Experiment,
    inputs: Inputs,
    matches: MatchSet,
    folder: Path,
    results: Results,
) -> Tables:
    saes, lm, tokens = inputs.saes, inputs.lm, inputs.texts.batches
    assert lm is not None
    splice = "skipping" in experiment.evaluations
    arms = experiment.arms if splice else {}
    strategies = experiment.strategies if splice else ()
    labels = experiment.model_labels
    plan, cells = plan_splices(saes, matches, arms, strategies, inputs.refused, labels)
    kept = cache_of(experiment, folder) / "sums"
    sums = evaluate_texts(plan, lm, tokens, experiment.trainer, kept, inputs.others)
    tables = Tables(plan, sums, experiment.intervals)
    if cells:
        results.tables |= tables.strategies(cells)
    results.tables |= tables.activations(matches)
    pooled = {
        (pair_of(row), row["arm"]): {name: row[name] for name in row if name != "dataset"}
        for row in results.tables["activations"]
        if row["dataset"] == POOLED
    }
    counted = matches.only(filter(plan.counts, matches.pairs))
    recall = live_recall(counted, _truth_of(inputs.chosen.suites), tables.fired)
    _join(results.tables["matches"], lambda row: (pair_of(row), row["arm"]), pooled)
    for row in results.tables["matches"]:
        row["recall_live"] = recall.get((pair_of(row), str(row["arm"])))
    by_key = {(row["suite"], row["layer"]): row for row in tables.layers(list(plan.twins))}
    _join(results.tables["layers"], lambda row: (row["suite"], row["layer"]), by_key)
    return tables


def _join(rows: list[Row], key: Callable[[Row], tuple], others: Mapping[tuple, Row]) -> None:
    """Add to each row the columns of the other row with its key; None if there is no other row."""
    columns = dict.fromkeys(name for other in others.values() for name in other)
    for row in rows:
        other = others.get(key(row), {})
        row |= {name: other.get(name, row.get(name)) for name in columns}


@stage("explain")
def _explain(
    experiment: Experiment, inputs: Inputs, judge: Judge | None, folder: Path
) -> Explanations | None:
    if not experiment.explains:
        return None
    texts = None
    if inputs.lm is not None:
        trainer, left = experiment.trainer, folder / "contexts"
        passes = {
            label: TextPass(*reader, trainer, folder / f"contexts_{label}")
            for label, reader in inputs.others.items()
        }
        others = {suite: passes[label] for suite, label in experiment.model_labels.items()}
        texts = TextPass(inputs.lm, inputs.texts.batches, trainer, left, others)
    chat = judge if isinstance(judge, Chat) else None
    return experiment.explain.open(inputs.saes, Means(cache_of(experiment, folder), texts, chat))


@stage("judge")
def _judge(
    experiment: Experiment,
    saes: SaeShelf,
    matches: MatchSet,
    explanations: Explanations,
    judges: list[Judge | None],
    results: Results,
) -> None:
    judge, second = judges
    judgements = []
    if judge is not None:
        about = (
            matches,
            experiment.pairing.chains,
            experiment.judging,
            explanations,
            judge,
            second,
        )
        judgements = judge_matches(*about, results.tables)
        results.tables |= judge_tables(judgements, saes, experiment.intervals)
        score_matches(results.tables["matches"], results.tables["judge_scores"])
        results.provenance["explanations"] = explainers(judgements)
    explain_tables(results.tables, explanations, judgements)
    results.provenance["judges"] = [chat.provenance() for chat in judges if chat is not None]


def cache_of(experiment: Experiment, folder: Path) -> Path:
    """Return the folder of what runs share; the run's own where they share nothing."""
    return folder / "cache" if experiment.cache is None else Path(experiment.cache)

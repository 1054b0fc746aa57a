"""One run: from an instantiated config to ``results.json``, figures and a mirror of both."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saematch.data.texts import LocalTexts, ZooTexts
from saematch.evals.runner import TrainerSpec
from saematch.evals.weights import threshold_summary
from saematch.files import write_json
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.objectives import Parts
from saematch.report.figures import draw_figures
from saematch.report.summary import history_by_layer, mean_metrics
from saematch.report.terminal import print_results
from saematch.results import Results
from saematch.sae.params import SaeParams
from saematch.sae.source import SaeSource
from saematch.tasks.evaluate import (
    activation_rows,
    evaluate_texts,
    layer_rows,
    plan_splices,
    score,
    strategy_rows,
)
from saematch.tasks.match import MatchSet, Pair, match_layers, match_rows
from saematch.tracking import CsvLogging, NoLogging, Outcome, Tracker, WandbLogging

log = logging.getLogger(__name__)

TASKS = ("match", "evaluate")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of."""

    name: str
    seed: int
    tasks: Sequence[str]
    layers: Sequence[int] | None
    """Layers to match, each with the next one of the list; None for all that have an SAE."""
    model: LmSource
    sae: SaeSource
    matching: Parts
    """The objective that the arms share."""
    arms: Mapping[str, Arm]
    strategies: Sequence[str]
    dataset: ZooTexts | LocalTexts
    trainer: TrainerSpec
    logger: WandbLogging | CsvLogging | NoLogging

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or "match" not in self.tasks:
            raise ValueError(
                f"tasks={list(self.tasks)}: a run does [match] or [match, evaluate], nothing else"
            )
        if not self.arms:
            raise ValueError("arms is empty: a run needs at least one way of matching")


def run(experiment: Experiment, config: dict[str, Any], folder: Path) -> Results:
    """Do the run in ``folder``, or go on with it if the folder holds a part of the same run.

    Raises ``ValueError`` and ``OSError`` for bad input, after writing ``results.json`` with the
    status ``failed`` and the error.
    """
    started = time.monotonic()
    results = Results(experiment.name, config, _provenance(experiment.seed))
    tracker: Tracker | None = None
    torch.manual_seed(experiment.seed)
    try:
        saes = _load_saes(experiment)
        lm = experiment.model.load() if "evaluate" in experiment.tasks else None
        if lm is not None:
            _check_fit(lm, saes)
        _claim(folder, config)
        tracker = experiment.logger.start(experiment.name, folder, config)
        results.provenance["part_weights"] = vars(experiment.matching)
        results.provenance["saes"] = {str(k): vars(sae.origin) for k, sae in saes.items()}
        matches = _match(experiment, saes, folder, results)
        if lm is not None:
            _evaluate(experiment, saes, matches, lm, folder, results)
        results.metrics = mean_metrics(results.tables)
        figures = draw_figures(results.tables, folder / "figures")
        results.status = "finished"
        results.provenance["seconds"] = round(time.monotonic() - started, 1)
        results.save(folder / "results.json")
        history = history_by_layer(results.tables)
        tracker.finish(Outcome(results, history, figures, folder / "matches"))
    except BaseException as error:
        if isinstance(error, Exception):
            results.status = "failed"
            results.error = f"{type(error).__name__}: {error}"
            results.save(folder / "results.json")
        if tracker is not None:
            tracker.fail()
        raise
    print_results(results, folder)
    return results


def _load_saes(experiment: Experiment) -> dict[int, SaeParams]:
    there = experiment.sae.layers()
    if not there:  # loading says what is missing and what there is
        experiment.sae.load(0)
        raise ValueError(f"no SAE was found at {experiment.sae.name}")
    layers = there if experiment.layers is None else sorted(set(experiment.layers))
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise ValueError(
            f"layers={layers}: there is no SAE for layer {missing[0]} in {experiment.sae.name}, "
            f"only for layers {', '.join(map(str, there))}"
        )
    if len(layers) < 2:
        raise ValueError(f"layers={layers}: matching needs at least two layers")
    saes = {
        layer: experiment.sae.load(layer)
        for layer in tqdm(layers, desc="load SAEs", unit="SAE", leave=False)
    }
    widths = {sae.d_model for sae in saes.values()}
    if len(widths) > 1:
        sizes = ", ".join(f"layer {layer}: {sae.d_model}" for layer, sae in saes.items())
        raise ValueError(f"the SAEs have different d_model ({sizes}), so they cannot be matched")
    models = {sae.origin.model_name for sae in saes.values()}
    if len(models) > 1:
        raise ValueError(f"the SAEs are of different language models: {', '.join(sorted(models))}")
    return saes


def _check_fit(lm: LanguageModel, saes: Mapping[int, SaeParams]) -> None:
    sae = next(iter(saes.values()))
    if sae.d_model != lm.d_model:
        raise ValueError(
            f"the SAEs have d_model {sae.d_model}, but the language model {lm.name} has "
            f"{lm.d_model}: choose the model that they were trained on"
        )
    trained_on = sae.origin.model_name
    if trained_on and trained_on != lm.name:
        raise ValueError(
            f"the SAEs were trained on {trained_on}, but the language model is {lm.name}: choose "
            "the other model, or set model.name if it is the same under another name"
        )
    beyond = [layer for layer in saes if layer >= lm.n_layers]
    if beyond:
        raise ValueError(f"{lm.name} has {lm.n_layers} blocks, there is no layer {beyond[0]}")


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Keep one run's parts apart from another's: refuse a folder that began with other settings."""
    path = folder / "run.json"
    mine = {k: v for k, v in _flat(config).items() if not k.startswith(("logger", "run_id"))}
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differing = [k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)]
        if differing:
            differing.sort(key=lambda k: (k.count("."), k))
            shown = "; ".join(f"{k}: {theirs.get(k)} -> {mine.get(k)}" for k in differing[:4])
            raise ValueError(
                f"{folder} holds a run with other settings ({shown}); choose another run_id, or "
                "the same settings to go on with it"
            )
    write_json(path, mine)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf
        for inner, part in value.items()
        for key, leaf in _flat(part, f"{name}.{inner}" if name else str(inner)).items()
    }


def _match(
    experiment: Experiment, saes: dict[int, SaeParams], folder: Path, results: Results
) -> MatchSet:
    layers = sorted(saes)
    pairs: tuple[Pair, ...] = tuple(pairwise(layers))
    matches = match_layers(saes, pairs, experiment.arms, folder / "matches")
    truths = [experiment.sae.truth(*pair) for pair in pairs]
    results.tables["matches"] = match_rows(saes, matches, truths)
    results.tables["layers"] = [
        {"layer": layer, "n_features": sae.n_features, **threshold_summary(sae)}
        for layer, sae in saes.items()
    ]
    return matches


def _evaluate(
    experiment: Experiment,
    saes: dict[int, SaeParams],
    matches: MatchSet,
    lm: LanguageModel,
    folder: Path,
    results: Results,
) -> None:
    plan = plan_splices(saes, matches, experiment.arms, experiment.strategies)
    totals = evaluate_texts(
        plan,
        matches,
        lm,
        experiment.dataset.load(),
        experiment.dataset.max_tokens,
        experiment.trainer,
        folder / "evaluation",
        repr(experiment.model),
    )
    results.tables["strategies"] = strategy_rows(plan, totals)
    results.tables["activations"] = activation_rows(plan, totals)
    for row in results.tables["matches"]:
        place = plan.pairs.index((row["layer_from"], row["layer_to"]))
        row.update(vars(score(plan, list(totals.values()), place, str(row["arm"]))))
    for known, measured in zip(results.tables["layers"], layer_rows(plan, totals), strict=True):
        known.update(measured)


def _provenance(seed: int) -> dict[str, Any]:
    packages = ("saematch", "torch", "transformers", "sae-lens", "lightning", "scipy", "wandb")
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that this code lies in, None for an installed package."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        if not (here.parents[1] / ".git").exists():
            return None
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

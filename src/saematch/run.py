"""One run: from an instantiated config to ``results.json``, figures and a mirror of both."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from saematch.data.tokens import TokenBatch
from saematch.evals.weights import threshold_summary
from saematch.experiment import Experiment, check_arms, load_saes, load_tokens
from saematch.files import write_json
from saematch.lm.hooks import LanguageModel
from saematch.report.figures import draw_figures
from saematch.report.summary import history_by_layer, mean_metrics, optimal_to
from saematch.report.terminal import print_results
from saematch.results import Results
from saematch.sae.params import SaeParams
from saematch.tasks.evaluate import (
    activation_rows,
    evaluate_texts,
    layer_rows,
    plan_splices,
    score,
    strategy_rows,
)
from saematch.tasks.match import MatchSet, Pair, match_layers, match_rows
from saematch.tracking import Outcome, Tracker

log = logging.getLogger(__name__)


def run(experiment: Experiment, config: dict[str, Any], folder: Path) -> Results:
    """Do the run in ``folder``, or go on with it if the folder holds a part of the same run.

    Raises ``ValueError`` and ``OSError`` for bad input, after writing ``results.json`` with the
    status ``failed`` and the error.
    """
    started = time.monotonic()
    path = folder / "results.json"
    settings = _settings(config)
    _refuse_other_run(folder, settings)
    finished = path.exists() and Results.load(path).status == "finished"
    results = Results(experiment.name, config, _provenance(experiment.seed))
    tracker: Tracker | None = None
    torch.manual_seed(experiment.seed)
    try:
        saes = load_saes(experiment)
        check_arms(experiment.arms, saes)
        lm = experiment.model.load() if "evaluate" in experiment.tasks else None
        tokens = {} if lm is None else load_tokens(experiment, lm, saes)
        write_json(folder / "run.json", settings)
        if not finished:
            results.save(path)
        tracker = experiment.logger.start(experiment.name, folder, config)
        results.provenance |= _sources(experiment, saes, lm)
        matches = _match(experiment, saes, folder, results)
        if lm is not None:
            _evaluate(experiment, saes, matches, lm, tokens, folder, results)
        results.metrics = mean_metrics(results.tables) | optimal_to(results.tables)
        figures = draw_figures(results.tables, folder / "figures")
        results.status = "finished"
        results.provenance["seconds"] = round(time.monotonic() - started, 1)
        results.save(path)
    except BaseException as error:
        if isinstance(error, Exception) and not finished:
            results.status = "failed"
            results.error = f"{type(error).__name__}: {error}"
            results.save(path)
        if tracker is not None:
            tracker.fail()
        raise
    history = history_by_layer(results.tables)
    tracker.finish(Outcome(results, history, figures, folder / "matches"))
    print_results(results, folder)
    return results


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is told from another by."""
    return {k: v for k, v in _flat(config).items() if not k.startswith(("logger", "run_id"))}


def _refuse_other_run(folder: Path, settings: dict[str, Any]) -> None:
    """Keep one run's parts apart from another's: refuse a folder that began with other settings."""
    path = folder / "run.json"
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another run_id") from error
    differing = [k for k in settings.keys() | theirs.keys() if settings.get(k) != theirs.get(k)]
    if differing:
        differing.sort(key=lambda k: (k.count("."), k))
        shown = "; ".join(f"{k}: {theirs.get(k)} -> {settings.get(k)}" for k in differing[:4])
        raise ValueError(
            f"{folder} holds a run with other settings ({shown}); choose another run_id, or "
            "the same settings to go on with it"
        )


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
    tokens: dict[str, tuple[TokenBatch, ...]],
    folder: Path,
    results: Results,
) -> None:
    plan = plan_splices(saes, matches, experiment.arms, experiment.strategies)
    totals = evaluate_texts(plan, matches, lm, tokens, experiment.trainer, folder / "evaluation")
    results.tables["strategies"] = strategy_rows(plan, totals)
    results.tables["activations"] = activation_rows(plan, totals)
    for row in results.tables["matches"]:
        place = plan.pairs.index((row["layer_from"], row["layer_to"]))
        row.update(vars(score(plan, list(totals.values()), place, str(row["arm"]))))
    for known, measured in zip(results.tables["layers"], layer_rows(plan, totals), strict=True):
        known.update(measured)


def _sources(
    experiment: Experiment, saes: Mapping[int, SaeParams], lm: LanguageModel | None
) -> dict[str, Any]:
    """Return what the results come from: SAEs, model, and the objective of each arm."""
    model = vars(experiment.model) | {"revision": lm.revision if lm else None}
    return {
        "saes": {str(layer): vars(sae.origin) for layer, sae in saes.items()},
        "model": model,
        "part_weights": {name: vars(arm.objective) for name, arm in experiment.arms.items()},
    }


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

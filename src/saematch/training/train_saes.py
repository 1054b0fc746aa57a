"""Training of SAEs, one per layer with its own seed, on hidden states that are stored on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saematch.core.columns import EXPLAINED_VARIANCE, Column
from saematch.core.errors import InputError
from saematch.core.files import read_json, replacing, write_json
from saematch.core.memory import keep_freed_memory, memory_shortage
from saematch.core.progress import progress
from saematch.core.tables import Row
from saematch.lm.states import SAMPLE, HiddenStates
from saematch.sae.params import SaeOrigin
from saematch.training.collect import Collection, Store
from saematch.training.state import TrainingRecipe, start
from saematch.training.steps import train
from saematch.training.trained import describe, finish, measure, save_sae

log = logging.getLogger(__name__)

COLUMNS: tuple[Column, ...] = (
    EXPLAINED_VARIANCE,
    Column("explained_variance_standardised", "explained variance, standardised", "higher",
           greatest=1.0, logged=("saes",),
           meaning="explained variance if each coordinate of the hidden state counts the same"),
    Column("l0", "L0", unit="features", least=0.0, logged=("saes",),
           meaning="mean number of active features of a held-out token"),
    Column("dead_features", "dead features", "lower", "features", least=0.0, logged=("saes",),
           meaning="number of features that are active on no training token"),
)  # fmt: skip
"""Metrics of trained SAEs."""
CARD_COLUMNS = (
    "layer",
    "explained_variance",
    "explained_variance_standardised",
    "l0",
    "dead_features",
    "threshold_mean",
    "threshold_spread",
    "threshold_factor",
    "seed",
    "seconds",
)


_RETRAIN = "delete the folder of this layer, and the same command trains its SAE again"
NAMES = {"jumprelu": "JumpReLU", "topk": "TopK"}


class Split(NamedTuple):
    """Hidden states of a layer, split into training and held-out rows."""

    training: HiddenStates
    held_out: HiddenStates
    n_outliers: int
    """Number of rows that are in neither part."""


def split(states: HiddenStates, spec: Collection) -> Split:
    """Return the rows without extreme norms; the last ``spec.held_out`` of them are held out.

    A few tokens have a norm many times that of the others (Sun et al. 2024, massive activations)
    and would make up nearly all of the squared error. Raises ``InputError`` if no training row is
    left.
    """
    median = torch.linalg.vector_norm(states.spread(SAMPLE), dim=1).median()
    norms = torch.cat([torch.linalg.vector_norm(p.float(), dim=1) for p in states.parts])
    kept = torch.nonzero(norms <= spec.max_norm * median).flatten()
    if len(kept) <= spec.held_out:
        raise InputError(
            f"collection.held_out={spec.held_out}, but there are only {len(kept)} hidden states: "
            "raise collection.n_tokens"
        )
    cut = len(kept) - spec.held_out
    parts = (states.choose(kept[:cut]), states.choose(kept[cut:]))
    return Split(*parts, len(norms) - len(kept))


class SaeTraining(NamedTuple):
    """Hidden states, recipe and device of the training of SAEs."""

    store: Store
    recipe: TrainingRecipe
    collection: Collection
    device: str


def train_saes(
    training: SaeTraining,
    layers: Sequence[int],
    folder: Path,
    record: Callable[[dict[str, float]], object],
) -> dict[str, list[Row]]:
    """Train the SAEs that ``folder`` lacks; return the tables ``saes`` and ``training``.

    The SAE of a layer is in ``folder/layer_<l>``. ``record`` gets the points of the training curves
    during training. The folder gets a card (``README.md``).
    """
    recipe = training.recipe
    missing = [layer for layer in layers if not (folder / f"layer_{layer}").exists()]
    trained = [_metadata(folder, layer) for layer in layers if layer not in missing]
    _refuse_others(trained, training.store, folder)
    if trained:
        log.info("Skipping %d of %d SAEs: already trained", len(trained), len(layers))
    if training.device == "cpu":
        keep_freed_memory()
    total = len(missing) * (recipe.samples // recipe.batch) * recipe.batch
    with progress("train SAEs", total, "sample") as bar:
        for layer in missing:
            bar.remark(f"layer {layer}")
            _train_layer(training, layer, folder, bar.advance, record)
    rows, curves = [], []
    for layer in layers:
        metadata = _metadata(folder, layer)
        rows.append({k: v for k, v in metadata.items() if not isinstance(v, dict | list)})
        curves += read_json(folder / f"curve_{layer}.json", list, _RETRAIN)
    with replacing(folder / "README.md") as part:
        part.write_text(_card(rows, training), encoding="utf-8")
    return {"saes": rows, "training": curves}


def _metadata(folder: Path, layer: int) -> dict[str, Any]:
    path = folder / f"layer_{layer}" / "cfg.json"
    return read_json(path, dict, _RETRAIN)["metadata"]


def _refuse_others(trained: Sequence[dict[str, Any]], store: Store, folder: Path) -> None:
    """Raise ``InputError`` if the folder has SAEs that were trained on other hidden states."""
    for metadata in trained:
        existing = metadata["hidden_states"]
        differing = [name for name in store.facts if existing.get(name) != store.facts[name]]
        if differing:
            raise InputError(
                f"{folder}/layer_{metadata['layer']} was trained on other hidden states "
                f"({', '.join(differing)} changed since): choose another run_id"
            )


def _train_layer(
    training: SaeTraining,
    layer: int,
    folder: Path,
    advance: Callable[[int], object],
    record: Callable[[dict[str, float]], object],
) -> None:
    began = time.monotonic()
    store = training.store
    recipe = replace(training.recipe, seed=training.recipe.seed + layer)
    parts = split(store.layer(layer), training.collection)
    curve: list[dict[str, float]] = []

    def watch(samples: int, numbers: dict[str, float]) -> None:
        curve.append({"layer": layer, "samples": samples, **numbers})
        named = {f"training/{name}/layer_{layer}": value for name, value in numbers.items()}
        record({"samples": float(samples), **named})

    state = start(parts.training, recipe)
    task = f"training an SAE of {recipe.n_features} features"
    with memory_shortage(task, f"lower training.batch={recipe.batch} or training.n_features"):
        state = train(state, parts.training, recipe, advance, watch, training.device)
    trained = finish(state, parts.training, recipe, SaeOrigin(layer, folder.name, f"layer_{layer}"))
    quality = measure(trained.sae, parts.training, parts.held_out)
    metadata = describe(trained, quality, recipe, store.facts["model"]) | {
        "samples": state.samples,
        "training_tokens": len(parts.training),
        "held_out_tokens": len(parts.held_out),
        "outliers": parts.n_outliers,
        "seconds": round(time.monotonic() - began, 1),
        "hidden_states": store.facts,
    }
    write_json(folder / f"curve_{layer}.json", curve)
    save_sae(trained.sae, folder / f"layer_{layer}", metadata)


def _card(rows: Sequence[Row], training: SaeTraining) -> str:
    """Return a description of the SAEs, as Markdown."""
    recipe, facts = training.recipe, training.store.facts
    lines = [
        f"# SAEs on {facts['model']}",
        "",
        f"{NAMES[recipe.architecture]} SAEs of {recipe.n_features:,} features on `resid_post`, in"
        " SAELens' format with decoder vectors of norm 1, trained with SAELens on"
        f" {rows[0]['samples']:,} hidden states each, drawn from {rows[0]['training_tokens']:,}"
        f" tokens (without special tokens). The model is {facts['revision']}, run in"
        f" {facts['model_dtype']}.",
        "",
        "Explained variance is `1 - sum Var(x_hat - x) / sum Var(x)` on"
        f" {rows[0]['held_out_tokens']:,} tokens that no SAE was trained on (other windows of the"
        " same documents may have been). In the standardised version, each coordinate of the hidden"
        " state has the same weight. L0 is the mean number of active features per token on them."
        " Dead features were never active on"
        f" {rows[0]['dead_tokens']:,} training tokens. Tokens whose norm is more than"
        f" {training.collection.max_norm:g} times the median were excluded everywhere"
        f" (at most {max(int(row['outliers'] or 0) for row in rows):,} in a layer).",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in CARD_COLUMNS) + " |",
        "|" + " --- |" * len(CARD_COLUMNS),
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row[name]) for name in CARD_COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)

"""Hidden states of the embedded model, stored on disk for the training of the SAEs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from tqdm import tqdm

from saematch.data.texts import TextSet
from saematch.data.tokens import tokenise
from saematch.lm.hooks import LanguageModel
from saematch.zoo.language_model import LmRecipe


@dataclass(frozen=True)
class ActivationRecipe:
    """Which training tokens the SAEs are trained on."""

    tokens: int = 1_300_000
    """Positions of the windows drawn, BOS included."""
    context: int = LmRecipe.context
    """Tokens of a window; its first one is replaced by BOS, as in the model's own training."""
    batch: int = 16
    seed: int = 1


@dataclass(frozen=True)
class HeldOut:
    """What the model makes of the held-out texts."""

    loss: dict[str, float]
    """Mean next-token loss by kind of text, in nats; the prediction made at BOS is left out."""
    tokens: dict[str, int]
    """Positions by kind, BOS left out."""


def layer_path(folder: Path, layer: int) -> Path:
    """Return where a layer's hidden states lie: float16 ``[n, d_model]``, BOS left out."""
    return folder / f"layer_{layer}.npy"


def open_layer(folder: Path, layer: int) -> np.ndarray:
    """Return a layer's hidden states, read from disk as they are used."""
    return np.load(layer_path(folder, layer), mmap_mode="r")


def collect_training(
    model: LanguageModel, stream: np.ndarray, folder: Path, recipe: ActivationRecipe
) -> None:
    """Store ``resid_post`` of every block on random windows of the training tokens, none twice."""
    rng = np.random.default_rng(recipe.seed)
    n_windows = min(recipe.tokens, len(stream)) // recipe.context
    starts = rng.permutation(len(stream) // recipe.context)[:n_windows] * recipe.context
    windows = np.stack([stream[s : s + recipe.context] for s in starts]).astype(np.int64)
    windows[:, 0] = 0
    batches = [(ids, ids != 0) for ids in torch.from_numpy(windows).split(recipe.batch)]
    bar = tqdm(batches, desc="activations")
    _store(model, bar, int((windows != 0).sum()), folder)


def collect_held_out(
    model: LanguageModel, texts: dict[str, list[str]], folder: Path, context: int
) -> HeldOut:
    """Store ``resid_post`` of every block on the beginnings of the texts, and measure the loss."""
    batches = {
        kind: tokenise(TextSet(kind, tuple(rows)), model.tokenizer, model.bos_id, context).batches(
            16
        )
        for kind, rows in texts.items()
    }
    every = [batch for part in batches.values() for batch in part]
    tokens = {k: int(sum(b.counts.sum() for b in part)) for k, part in batches.items()}
    loss = {}
    for kind, part in batches.items():
        losses = []
        for batch in part:
            with torch.inference_mode():
                _, final = model.capture(batch.ids, ())
                targets = batch.ids.roll(-1, dims=1)[batch.predicts]
                losses.append(model.token_losses(final[batch.predicts], targets))
        loss[kind] = float(torch.cat(losses).mean())
    _store(model, [(b.ids, b.counts) for b in every], sum(tokens.values()), folder)
    return HeldOut(loss, tokens)


def _store(
    model: LanguageModel,
    batches: Iterable[tuple[Int64[Tensor, "_ _"], Bool[Tensor, "_ _"]]],
    n: int,
    folder: Path,
) -> None:
    """Write the hidden states of the counted positions; the folder appears when all are there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    layers = tuple(range(model.n_layers))
    files = [
        np.lib.format.open_memmap(
            layer_path(part, layer), mode="w+", dtype=np.float16, shape=(n, model.d_model)
        )
        for layer in layers
    ]
    done = 0
    for ids, counts in batches:
        with torch.inference_mode():
            hidden, _ = model.capture(ids, layers)
        size = int(counts.sum())
        for layer, file in zip(layers, files, strict=True):
            file[done : done + size] = hidden[layer][counts].half().numpy()
        done += size
    assert done == n
    for file in files:
        file.flush()
    part.rename(folder)

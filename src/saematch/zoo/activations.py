"""Hidden states of the embedded model, stored on disk for training the SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saematch.lm.hooks import LanguageModel
from saematch.texts.sources import TextSet
from saematch.texts.tokens import TokenBatch, tokenise, whole_windows
from saematch.texts.trainer import TrainerSpec
from saematch.training.collect import keep_states
from saematch.zoo.language_model import LmRecipe


@dataclass(frozen=True)
class ActivationRecipe:
    """Selection of the training tokens for the SAEs."""

    tokens: int = 1_300_000
    """Number of positions in the sampled windows, including BOS."""
    context: int = LmRecipe.context
    """Tokens in a window; BOS replaces its first token, as in the model's own training."""
    batch: int = 16
    seed: int = 1


@dataclass(frozen=True)
class HeldOut:
    """Loss and number of tokens of the model on the held-out texts."""

    loss: dict[str, float]
    """Mean next-token loss by kind of text, in nats, without the prediction at BOS."""
    tokens: dict[str, int]
    """Number of positions by kind, without special tokens."""


def collect_training(
    model: LanguageModel, stream: np.ndarray, folder: Path, recipe: ActivationRecipe
) -> None:
    """Store ``resid_post`` of every block on distinct random windows of the training tokens."""
    rng = np.random.default_rng(recipe.seed)
    n_windows = min(recipe.tokens, len(stream)) // recipe.context
    starts = rng.permutation(len(stream) // recipe.context)[:n_windows] * recipe.context
    windows = np.stack([stream[s : s + recipe.context] for s in starts]).astype(np.int64)
    windows[:, 0] = 0
    batches = torch.from_numpy(windows).split(recipe.batch)
    _keep(model, [whole_windows(ids, model.special_ids) for ids in batches], folder)


def collect_held_out(
    model: LanguageModel, texts: dict[str, list[str]], folder: Path, context: int
) -> HeldOut:
    """Store ``resid_post`` of every block on the beginnings of the texts, and measure the loss."""
    batches = {
        kind: tokenise(TextSet(kind, tuple(rows)), model, context).batches(16)
        for kind, rows in texts.items()
    }
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
    _keep(model, [batch for part in batches.values() for batch in part], folder)
    return HeldOut(loss, tokens)


def _keep(model: LanguageModel, batches: Sequence[TokenBatch], folder: Path) -> None:
    facts = {
        "model": model.name,
        "layers": list(range(model.n_layers)),
        "dtype": "float16",
        "d_model": model.d_model,
    }
    keep_states(model, batches, facts, folder, TrainerSpec(accelerator="cpu"))

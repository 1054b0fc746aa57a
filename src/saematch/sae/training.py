"""Training JumpReLU SAEs on stored activations with SAELens, and saving them in its format."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor

from saematch.sae.folding import fold
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.training_state import (
    CHUNK,
    MIN_THRESHOLD,
    SAMPLE,
    TrainingRecipe,
    TrainingState,
    activation_scale,
    spread,
)

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def train(
    state: TrainingState,
    activations: np.ndarray,
    recipe: TrainingRecipe,
    advance: Callable[[int], object],
) -> TrainingState:
    """Train on ``recipe.samples`` activations with SAELens' trainer, from ``state`` on.

    The optimiser goes on where the state's own training left it; the learning rate rises and falls
    anew. ``activations`` is ``[n, d_model]``, held in memory or on disk; ``advance`` is told the
    number of samples of every step.
    """
    from sae_lens.training.sae_trainer import SAETrainer

    steps = recipe.samples // recipe.batch
    if steps == 0:
        return state
    sae, config = _saelens_parts(state, recipe, steps)
    batches = _batches(activations, recipe, steps)
    trainer = SAETrainer(config, sae, batches)
    _restore_moments(trainer.optimizer, sae, state)
    for batch in batches:
        trainer.step(batch)
        trainer.n_training_steps += 1
        advance(len(batch))
    moments = {name: trainer.optimizer.state[p] for name, p in sae.named_parameters()}
    return TrainingState(
        {name: p.detach().clone() for name, p in sae.named_parameters()},
        {name: m["exp_avg"] for name, m in moments.items()},
        {name: m["exp_avg_sq"] for name, m in moments.items()},
        steps=state.steps + steps,
        samples=state.samples + steps * recipe.batch,
    )


def _saelens_parts(state: TrainingState, recipe: TrainingRecipe, steps: int) -> tuple[Any, Any]:
    """Return SAELens' SAE with the state's parameters, and the configuration of its trainer."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig

    sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=len(state.parameters["b_dec"]),
            d_sae=recipe.n_features,
            apply_b_dec_to_input=False,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=recipe.aim * recipe.target_l0,
            l0_coefficient=recipe.l0_coefficient,
            jumprelu_bandwidth=recipe.bandwidth,
            pre_act_loss_coefficient=recipe.dead_coefficient,
        )
    )
    sae.load_state_dict(state.parameters)
    config = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr,
        lr_warm_up_steps=math.ceil(recipe.warm_up * steps),
        lr_decay_steps=int(recipe.decay * steps),
        dead_feature_window=recipe.dead_after,
    )
    return sae, config


def _restore_moments(
    optimizer: torch.optim.Optimizer, sae: torch.nn.Module, state: TrainingState
) -> None:
    if state.steps == 0:
        return
    for name, parameter in sae.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.steps)),
            "exp_avg": state.means[name].clone(),
            "exp_avg_sq": state.squares[name].clone(),
        }


def _batches(
    activations: np.ndarray, recipe: TrainingRecipe, steps: int
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield scaled batches, every activation once before any comes again."""
    rng = np.random.default_rng(recipe.seed)
    scale = activation_scale(activations)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < recipe.batch:
            order = np.concatenate([order, rng.permutation(len(activations))])
        chosen, order = np.sort(order[: recipe.batch]), order[recipe.batch :]
        yield torch.from_numpy(activations[chosen]).float() * scale


def to_params(state: TrainingState, activations: np.ndarray, origin: SaeOrigin) -> SaeParams:
    """Return the state as an SAE of the unscaled activations that it was trained on.

    Decoder vectors get norm 1, and the weights are rounded to half precision as in a saved file.
    """
    scale = activation_scale(activations)
    p = state.parameters
    sae = SaeParams(
        W_enc=p["W_enc"] * scale,
        b_enc=p["b_enc"],
        W_dec=p["W_dec"] / scale,
        b_dec=p["b_dec"] / scale,
        threshold=p["threshold"].clamp(min=MIN_THRESHOLD),
        activation="jumprelu",
        origin=origin,
    )
    sae = fold(sae, "decoder_norm")
    return replace(
        sae, **{n: getattr(sae, n).half().float() for n in PARAMETERS if n != "threshold"}
    )


def threshold_factor(sae: SaeParams, activations: np.ndarray, target_l0: float) -> float:
    """Return the factor on all thresholds with which the mean L0 on a sample is ``target_l0``.

    A feature is active under the factor ``c`` where pre-activation over threshold is above ``c``,
    so ``c`` is that ratio's value of rank ``target_l0 * tokens``.
    """
    sample = spread(activations, SAMPLE)
    wanted = round(target_l0 * len(sample))
    parts = []
    for chunk in sample.split(CHUNK):
        ratio = torch.addmm(sae.b_enc, chunk, sae.W_enc).div_(sae.threshold)
        parts.append(ratio[ratio > 0.25])
    ratios = torch.cat(parts)
    if len(ratios) <= wanted:
        raise ValueError(
            f"SAE {sae.origin.sae_id}: too few pre-activations reach a quarter of their threshold "
            f"for a mean L0 of {target_l0}; train it longer or ask for a lower target"
        )
    return float(ratios.topk(wanted + 1).values[-1])


def permuted(sae: SaeParams, order: Int64[Tensor, " n_features"]) -> SaeParams:
    """Return the SAE whose feature ``i`` is the given one's feature ``order[i]``."""
    assert sae.threshold is not None
    return replace(
        sae,
        W_enc=sae.W_enc[:, order].contiguous(),
        b_enc=sae.b_enc[order],
        W_dec=sae.W_dec[order],
        threshold=sae.threshold[order],
    )


def save_sae(sae: SaeParams, folder: Path, metadata: dict[str, object]) -> None:
    """Write a folder that ``SAE.load_from_disk`` of SAELens loads as a float32 ``JumpReLUSAE``.

    The weights are stored in half precision and the thresholds in float32; the folder appears under
    its name only when it is complete.
    """
    from sae_lens import JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = JumpReLUSAEConfig(
        d_in=sae.d_model,
        d_sae=sae.n_features,
        apply_b_dec_to_input=False,
        metadata=SAEMetadata(**metadata),
    ).to_dict()
    tensors = {n: getattr(sae, n).contiguous() for n in PARAMETERS}
    tensors = {n: t.float() if n == "threshold" else t.half() for n, t in tensors.items()}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / "sae_weights.safetensors")
    (part / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    part.rename(folder)

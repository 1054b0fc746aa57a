"""Training SAEs on stored hidden states with SAELens' trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saematch.lm.states import HiddenStates
from saematch.training.state import TrainingRecipe, TrainingState

CURVE_STEPS = 50
"""Steps between two points of a training curve."""


def train(
    state: TrainingState,
    states: HiddenStates,
    recipe: TrainingRecipe,
    advance: Callable[[int], object],
    watch: Callable[[int, dict[str, float]], object] | None = None,
    device: str = "cpu",
) -> TrainingState:
    """Train on ``recipe.samples`` hidden states with SAELens' trainer; return the new state.

    Training starts at ``state`` and keeps its optimiser state; the schedule of the learning rate
    starts again. ``advance`` gets the number of samples of every step. Every ``CURVE_STEPS`` steps,
    ``watch`` gets the number of samples so far, and ``explained_variance``, ``l0`` and
    ``dead_features`` of the last batch.
    """
    from sae_lens.training.sae_trainer import SAETrainer

    steps = recipe.samples // recipe.batch
    if steps == 0:
        return state
    sae, config = _saelens_parts(state, recipe, steps, device)
    batches = _batches(states, recipe, steps)
    trainer = SAETrainer(config, sae, batches)
    _restore_moments(trainer.optimizer, sae, state)
    for batch in batches:
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        advance(len(batch))
        at_end = trainer.n_training_steps == steps
        if watch is not None and (at_end or trainer.n_training_steps % CURVE_STEPS == 0):
            watch(trainer.n_training_samples, _point(output, trainer.dead_neurons))
    moments = {name: trainer.optimizer.state[p] for name, p in sae.named_parameters()}
    return TrainingState(
        {name: p.detach().clone().cpu() for name, p in sae.named_parameters()},
        {name: m["exp_avg"].cpu() for name, m in moments.items()},
        {name: m["exp_avg_sq"].cpu() for name, m in moments.items()},
        steps=state.steps + steps,
        samples=state.samples + steps * recipe.batch,
    )


def _point(output: Any, dead: Tensor) -> dict[str, float]:
    with torch.no_grad():
        unexplained = (output.sae_out - output.sae_in).var(0).sum() / output.sae_in.var(0).sum()
        l0 = (output.feature_acts > 0).sum(1).float().mean()
    numbers = {"explained_variance": 1 - unexplained, "l0": l0, "dead_features": dead.sum()}
    return {name: float(value) for name, value in numbers.items()}


def _saelens_parts(
    state: TrainingState, recipe: TrainingRecipe, steps: int, device: str
) -> tuple[Any, Any]:
    """Return SAELens' SAE with the parameters of the state, and the configuration of its
    trainer."""
    from sae_lens.config import SAETrainerConfig

    sae = _saelens_sae(len(state.parameters["b_dec"]), recipe, device)
    sae.load_state_dict(state.parameters)
    config = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr,
        lr_warm_up_steps=math.ceil(recipe.warm_up * steps),
        lr_decay_steps=int(recipe.decay * steps),
        dead_feature_window=recipe.dead_after,
        device=device,
    )
    return sae, config


def _saelens_sae(d_model: int, recipe: TrainingRecipe, device: str) -> Any:
    from sae_lens import (
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    size = {
        "d_in": d_model,
        "d_sae": recipe.n_features,
        "apply_b_dec_to_input": False,
        "device": device,
    }
    if recipe.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=int(recipe.target_l0)))
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **size,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=recipe.aim * recipe.target_l0,
            l0_coefficient=recipe.l0_coefficient,
            jumprelu_bandwidth=recipe.bandwidth,
            pre_act_loss_coefficient=recipe.dead_coefficient,
        )
    )


def _restore_moments(
    optimizer: torch.optim.Optimizer, sae: torch.nn.Module, state: TrainingState
) -> None:
    if state.steps == 0:
        return
    for name, parameter in sae.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.steps)),
            "exp_avg": state.means[name].clone().to(parameter.device),
            "exp_avg_sq": state.squares[name].clone().to(parameter.device),
        }


def _batches(
    states: HiddenStates, recipe: TrainingRecipe, steps: int
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield scaled batches; every row is used once before any row repeats."""
    rng = np.random.default_rng(recipe.seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < recipe.batch:
            order = np.concatenate([order, rng.permutation(len(states))])
        chosen, order = np.sort(order[: recipe.batch]), order[recipe.batch :]
        yield states.rows(torch.from_numpy(chosen)) * states.scale

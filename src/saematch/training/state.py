"""Recipe and state of the training of an SAE.

A state is in scaled units: activations are multiplied by a factor that makes their mean norm
``sqrt(d_model)``. So one recipe works for every layer, and training of an SAE can continue on the
next layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.specs import AtLeast0, AtLeast1, NotNegative, Positive, Seed, Share, spec
from saematch.lm.states import SAMPLE, HiddenStates

ARCHITECTURES = ("jumprelu", "topk")
MIN_THRESHOLD = 1e-3
"""Smallest threshold in scaled units, since folding divides by thresholds."""
CHUNK = 2_048
"""Number of rows that are encoded at once outside training."""


@spec("training")
class TrainingRecipe:
    """Spec of the training of an SAE; with the hidden states it determines the result."""

    n_features: AtLeast1
    target_l0: Positive
    """Target of the mean number of active features per token; the k of TopK."""
    samples: AtLeast0
    """Number of hidden states in the training, including repeats."""
    seed: Seed
    """Seed of the initial parameters and of the order of the hidden states. If SAEs of several
    layers are trained separately, the layer is added to it: with the same seed, features of equal
    index would start equal."""
    architecture: str = "jumprelu"
    """``jumprelu`` or ``topk``."""
    batch: AtLeast1 = 1024
    lr: Positive = 2e-3
    """Largest learning rate of Adam."""
    warm_up: Share = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    decay: Share = 0.5
    """Share of the steps, at the end, in which the learning rate falls to zero."""
    l0_coefficient: NotNegative = 0.35
    aim: Positive = 0.95
    """Number of active features at which the quadratic loss is zero, as a share of ``target_l0``.
    The number settles above it, where the reconstruction loss balances the quadratic loss."""
    bandwidth: Positive = 0.3
    """Width, in scaled units, of the window around a threshold in which activations give it a
    gradient."""
    dead_after: AtLeast1 = 50
    """Number of batches without activity after which a loss pulls a feature towards its
    threshold."""
    dead_coefficient: NotNegative = 1e-2

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"training.architecture={self.architecture!r} must be {' or '.join(ARCHITECTURES)}"
            )
        if not 0 < self.target_l0 < self.n_features:
            raise InputError(
                f"training.target_l0={self.target_l0} must be between 0 and the number of "
                f"features, training.n_features={self.n_features}"
            )
        if self.architecture == "topk" and self.target_l0 != int(self.target_l0):
            raise InputError(f"training.target_l0={self.target_l0}: TopK's k is a whole number")


@dataclass(frozen=True)
class TrainingState:
    """State of the training of an SAE, to continue on the same or on other activations."""

    parameters: dict[str, Tensor]
    """Parameters by their SAELens names, in scaled units."""
    means: dict[str, Tensor]
    """Adam's running means of the gradients."""
    squares: dict[str, Tensor]
    """Adam's running means of the squared gradients."""
    steps: int
    samples: int

    def save(self, path: Path) -> None:
        """Write the state as one safetensors file."""
        groups = {"parameters": self.parameters, "means": self.means, "squares": self.squares}
        tensors = {
            f"{g}/{n}": t.contiguous() for g, part in groups.items() for n, t in part.items()
        }
        with replacing(path) as part:
            save_file(tensors, part, {"steps": str(self.steps), "samples": str(self.samples)})

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read a state that ``save`` wrote."""
        groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "means": {}, "squares": {}}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (the file is not a mapping)
                group, name = key.split("/")
                groups[group][name] = file.get_tensor(key)
            counts = file.metadata()
        return cls(**groups, steps=int(counts["steps"]), samples=int(counts["samples"]))


def start(states: HiddenStates, recipe: TrainingRecipe) -> TrainingState:
    """Return the initial state: each feature is the direction of a random row from the mean.

    The threshold of a feature is the quantile of its pre-activations at which it is active on
    ``target_l0 / n_features`` of the rows. So the mean L0 starts at its target, and the thresholds
    differ as the directions do.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    sample = states.spread(SAMPLE) * states.scale
    mean = sample.mean(0)
    centred = sample - mean
    n_orders = math.ceil(recipe.n_features / len(centred))
    orders = [torch.randperm(len(centred), generator=generator) for _ in range(n_orders)]
    chosen = torch.cat(orders)
    noise = torch.randn(recipe.n_features, sample.shape[1], generator=generator)
    directions = centred[chosen[: recipe.n_features]]
    directions = directions + 0.3 * noise * centred.std(0)
    W_dec = torch.nn.functional.normalize(directions, dim=1)
    rank = max(1, round(len(centred) * recipe.target_l0 / recipe.n_features))
    threshold = torch.cat(
        [(centred @ part.T).topk(rank, dim=0).values[-1] for part in W_dec.split(256)]
    )
    norm = math.sqrt(_best_gain(centred[: 4 * CHUNK], W_dec, threshold))
    parameters = {
        "W_enc": norm * W_dec.T.contiguous(),
        "b_enc": -norm * (W_dec @ mean),
        "W_dec": norm * W_dec,
        "b_dec": mean,
    }
    if recipe.architecture == "jumprelu":
        parameters["threshold"] = norm * threshold.clamp(min=MIN_THRESHOLD)
    means, squares = ({n: torch.zeros_like(t) for n, t in parameters.items()} for _ in range(2))
    return TrainingState(parameters, means, squares, steps=0, samples=0)


def _best_gain(
    centred: Float[Tensor, "n d_model"],
    W_dec: Float[Tensor, "n_features d_model"],
    threshold: Float[Tensor, " n_features"],
) -> float:
    """Return the factor on the decoder that gives the best reconstruction at the start."""
    pre = centred @ W_dec.T
    guess = torch.where(pre > threshold, pre, 0.0) @ W_dec
    return float((guess * centred).sum() / guess.square().sum())


def refresh(
    state: TrainingState, fresh: TrainingState, features: Int64[Tensor, " n"]
) -> TrainingState:
    """Return ``state`` with the given features and their optimiser state from ``fresh``."""

    def mixed(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {name: tensor.clone() for name, tensor in old.items()}
        out["W_enc"][:, features] = new["W_enc"][:, features]
        for name in ("b_enc", "W_dec", "threshold"):
            out[name][features] = new[name][features]
        return out

    return replace(
        state,
        parameters=mixed(state.parameters, fresh.parameters),
        means=mixed(state.means, fresh.means),
        squares=mixed(state.squares, fresh.squares),
    )

"""The SAEs of the zoo: three families, two of them with a known true match.

chain        the SAE of each layer continues the training of the previous layer's SAE. Every
             shipped SAE has its features in a hidden random order; the orders are the truth
independent  each layer is trained from its own seed, at three sparsity levels; no known truth
mixed        like chain, but at each layer a random quarter of the features is initialised
             again and has no partner in the previous layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.progress import progress
from saematch.sae.params import SaeOrigin
from saematch.training.collect import open_store
from saematch.training.state import TrainingRecipe, TrainingState, refresh, start
from saematch.training.steps import train
from saematch.training.trained import describe, finish, measure, permuted, save_sae

MODEL_NAME = "saematch-zoo"
KINDS = ("chain", "independent", "mixed")
FRESH_SHARE = 4
"""In the family ``mixed``, one of this many features is initialised again at each layer."""


@dataclass(frozen=True)
class Family:
    """A suite of SAEs, one per layer."""

    kind: str
    width: int
    sparsity: int
    """Target of the mean number of active features per token."""
    seed: int
    """Seed of layer 0. The layer is added to it, so seeds of families must differ by more than
    that."""
    first_samples: int
    """Number of activations in the training of an SAE from scratch."""
    next_samples: int
    """Number of activations in the training of an SAE that continues the previous layer's."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown family {self.kind!r}: choose one of {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        """Folder of the family in the SAE folder of the zoo."""
        return f"{self.kind}/width_{self.width}/l0_{self.sparsity}"

    def recipe(self, layer: int) -> TrainingRecipe:
        """Return the recipe of the SAE of a layer."""
        recipe = TrainingRecipe(
            n_features=self.width,
            target_l0=float(self.sparsity),
            samples=self.first_samples,
            seed=self.seed + layer,
        )
        if layer == 0 or self.kind == "independent":
            return recipe
        return replace(recipe, samples=self.next_samples, lr=3e-3, l0_coefficient=0.8, aim=0.9)

    def order(self, layer: int) -> Int64[Tensor, " width"]:
        """Return the hidden order: shipped feature ``i`` is feature ``order[i]`` in training."""
        if self.kind == "independent":
            return torch.arange(self.width)
        return self._shuffled(layer, 1)

    def fresh(self, layer: int) -> Int64[Tensor, " n"]:
        """Return the features that are initialised again at a layer, numbered as in training."""
        if layer == 0 or self.kind == "independent":
            return torch.arange(self.width)
        n_fresh = self.width // FRESH_SHARE if self.kind == "mixed" else 0
        return self._shuffled(layer, 2)[:n_fresh].sort().values

    def truth(self, layer: int) -> Match:
        """Return the true match of the shipped SAEs of ``layer`` and ``layer + 1``."""
        partner = torch.argsort(self.order(layer + 1))
        partner[self.fresh(layer + 1)] = -1
        return Match.from_columns(partner[self.order(layer)], n_target=self.width)

    def _shuffled(self, layer: int, stream: int) -> Int64[Tensor, " width"]:
        rng = np.random.default_rng((self.seed + layer, stream))
        return torch.from_numpy(rng.permutation(self.width))


FAMILIES = (
    Family("chain", 1024, 20, 100, first_samples=1_000_000, next_samples=400_000),
    Family("independent", 1024, 20, 200, first_samples=800_000, next_samples=0),
    Family("mixed", 1024, 20, 300, first_samples=1_000_000, next_samples=500_000),
    Family("chain", 2048, 20, 400, first_samples=1_000_000, next_samples=400_000),
    Family("independent", 1024, 10, 500, first_samples=800_000, next_samples=0),
    Family("independent", 1024, 40, 600, first_samples=800_000, next_samples=0),
)


@dataclass(frozen=True)
class Folders:
    """Folders of the inputs, states and results of a build."""

    training: Path
    """Folder of the hidden states of training tokens."""
    held_out: Path
    """Folder of the hidden states of held-out texts."""
    states: Path
    """Folder of training states, from which an interrupted build continues."""
    out: Path
    """Folder of the finished SAEs."""


def build_family(family: Family, folders: Folders, n_layers: int) -> None:
    """Train and save the missing SAEs of a family, and its true matches if it has any."""
    missing = [layer for layer in range(n_layers) if not _folder(family, folders, layer).exists()]
    total = sum(
        family.recipe(layer).samples
        for layer in missing
        if not _state_path(family, folders, layer).exists()
    )
    with progress(family.name, total, "sample") as bar:
        for layer in missing:
            state = _state(family, folders, layer, bar.advance)
            _ship(family, folders, layer, state)
    if family.kind != "independent":
        for layer in range(n_layers - 1):
            path = folders.out / family.name / "truth" / f"{layer}-{layer + 1}.safetensors"
            if not path.exists():
                family.truth(layer).save(path)


def _state(
    family: Family, folders: Folders, layer: int, advance: Callable[[int], object]
) -> TrainingState:
    """Return the final training state of a layer; trains and stores it if it is missing."""
    path = _state_path(family, folders, layer)
    if path.exists():
        return TrainingState.load(path)
    activations = open_store(folders.training).layer(layer)
    recipe = family.recipe(layer)
    if layer == 0 or family.kind == "independent":
        state = start(activations, recipe)
    else:
        state = _state(family, folders, layer - 1, advance)
        fresh = family.fresh(layer)
        if len(fresh):
            state = refresh(state, start(activations, recipe), fresh)
    state = train(state, activations, recipe, advance)
    state.save(path)
    return state


def _ship(family: Family, folders: Folders, layer: int, state: TrainingState) -> None:
    """Calibrate, measure, shuffle and save the SAE of a layer."""
    training = open_store(folders.training).layer(layer)
    recipe = family.recipe(layer)
    origin = SaeOrigin(layer, family.name, f"layer_{layer}")
    trained = finish(state, training, recipe, origin, torch.float16)
    quality = measure(trained.sae, training, open_store(folders.held_out).layer(layer))
    metadata = describe(trained, quality, recipe, MODEL_NAME) | {
        "prepend_bos": True,
        "family": family.kind,
        "samples": recipe.samples,
        "samples_with_earlier_layers": state.samples,
        "fresh_features": len(family.fresh(layer)),
    }
    shuffled = permuted(trained.sae, family.order(layer))
    save_sae(shuffled, _folder(family, folders, layer), metadata, torch.float16)


def _folder(family: Family, folders: Folders, layer: int) -> Path:
    return folders.out / family.name / f"layer_{layer}"


def _state_path(family: Family, folders: Folders, layer: int) -> Path:
    return folders.states / family.name / f"layer_{layer}.safetensors"

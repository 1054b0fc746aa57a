"""Recorders, which store tensors of every batch of texts, and their recordings.

All recorders of a pass (``saematch.sae.passes``) share one forward of the language model for each
batch, and the active features of each SAE. Each recorder writes its own files. The name of a file
is a hash of everything that determines its content, so a run uses the files of earlier runs. The
other recorders of a pass do not change these names, unless the SAEs do not fit into memory
together: then the items of all recorders determine which SAEs share a part of the pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from saematch.core.pairs import Pair, SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.sae.activations import SparseFeatures, encode
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.suites import SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.sums import TextSums
from saematch.texts.tokens import TokenBatch


@dataclass(frozen=True)
class Models:
    """Language models of the suites of a run."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Label of each suite's model. Suites without a label have the run's own model, ``""``."""

    def of(self, key: SaeKey) -> str:
        """Return the label of an SAE's language model."""
        return self.labels.get(key.suite, "")

    def twins(self, saes: SaeShelf) -> dict[SaeKey, SaeKey]:
        """Map each SAE to the first SAE of the same origin and language model.

        Suites may share SAEs: such an SAE is recorded once.
        """
        first: dict[tuple[str, SaeOrigin], SaeKey] = {}
        return {
            key: first.setdefault((self.of(key), facts.origin), key)
            for key, facts in saes.facts.items()
        }


@dataclass(frozen=True)
class Forward:
    """One forward of a language model on one batch, and values that recorders share."""

    lm: LanguageModel
    batch: TokenBatch
    model: str
    """Label of ``lm``."""
    models: Models
    saes: Mapping[SaeKey, SaeParams]
    hidden: Mapping[int, Float[Tensor, "batch seq d_model"]]
    """``resid_post`` of ``lm`` by layer."""
    final: Float[Tensor, "batch seq d_model"] | None
    """Final hidden state; None if no recorder runs the model from a hidden state on."""
    states: Mapping[str, Mapping[int, Float[Tensor, "n_tokens _"]]]
    """``resid_post`` in float32 at the tokens that count, by model and layer. Other models that
    read the same batch are included."""
    _active: dict[SaeKey, SparseFeatures] = field(default_factory=dict, init=False, repr=False)

    def x(self, key: SaeKey) -> Float[Tensor, "n_tokens d_model"]:
        """Return the hidden states that an SAE reads, at the tokens that count."""
        return self.states[self.models.of(key)][key.layer]

    def active(self, key: SaeKey) -> SparseFeatures:
        """Return the active features of an SAE at the tokens that count; computed once."""
        if key not in self._active:
            with torch.autocast(self.batch.ids.device.type, enabled=False):
                self._active[key] = encode(self.saes[key], self.x(key))
        return self._active[key]

    @cached_property
    def text(self) -> Int64[Tensor, " n_tokens"]:
        """The text of each token that counts, by its number in the batch."""
        return torch.nonzero(self.batch.counts)[:, 0]


@runtime_checkable
class Recorder(Protocol):
    """Interface of a recorder, which stores tensors of each batch for items.

    An item needs one or more SAEs at the same time.
    """

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        ...

    @property
    def runs_model(self) -> bool:
        """Whether ``record`` runs ``forward.lm`` or reads ``forward.final``.

        The SAEs of each item must then belong to one language model, and ``forward.lm`` is that
        model.
        """
        ...

    def needs(self) -> Mapping[Any, frozenset[SaeKey]]:
        """Return the SAEs that each item needs, at least one."""
        ...

    def only(self, items: Collection[Any]) -> Recorder:
        """Return a recorder of some of the items."""
        ...

    def facts(self) -> list[Any]:
        """Return, as JSON values, everything that determines the tensors except code, SAEs, models
        and texts."""
        ...

    def record(self, forward: Forward) -> Kept:
        """Return the tensors of a batch. Two items never share a tensor's name.

        A recorder that runs the model is called in the trainer's precision, others in full.
        """
        ...

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the tensors of a batch from those of its halves; the first has ``n_texts``."""
        ...


@dataclass(frozen=True)
class Recording:
    """The files of one recorder."""

    files: Mapping[str, tuple[tuple[Path, ...], ...]]
    """For each text set and each part of the pass: one file for each batch."""

    def sums(self) -> dict[str, TextSums]:
        """Return the recorded sums by text of each text set."""
        return {name: TextSums(parts) for name, parts in self.files.items()}

    def has(self, name: str) -> bool:
        """Return whether a tensor was recorded."""
        of_set = next(iter(self.files.values()), ())
        return any(name in _tensor_names(paths[0]) for paths in of_set)

    def batches(self, names: Sequence[str]) -> Iterator[list[Tensor]]:
        """Yield the named tensors of each batch, one text set after another.

        They come from the first part of the pass that recorded them; ``KeyError`` if no part did.
        """
        for parts in self.files.values():
            having = [paths for paths in parts if set(names) <= _tensor_names(paths[0])]
            if not having:
                raise KeyError(*names)
            for path in having[0]:
                with safe_open(path, framework="pt") as file:
                    yield [_as_recorded(file.get_tensor(name)) for name in names]


def _as_recorded(tensor: Tensor) -> Tensor:
    """Return whole numbers in 64 bits: small ones are stored in 16, which overflow in sums."""
    return tensor.long() if tensor.dtype == torch.int16 else tensor


def _tensor_names(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def tensor_name(key: SaeKey, name: str) -> str:
    """Return the name of an SAE's tensor in the file of a recorder."""
    return f"{key.suite}|{key.layer}|{name}"


def pair_tensor_name(pair: Pair, name: str) -> str:
    """Return the name of a pair's tensor in the file of a recorder."""
    return "|".join(map(str, (*pair.source, *pair.target, name)))

"""One pass over the texts for many recorders: each keeps something of every batch.

All recorders of a pass share one forward of the language model for each batch, and the activations
of each SAE. Each has files of its own, named by a hash of all that determines their content, so
that a run takes what another run has kept, whatever else that run recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures, encode
from saematch.sae.params import SaeParams
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.readers import Reader
from saematch.texts.sums import TextSums
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec


@dataclass(frozen=True)
class Models:
    """Which language model each suite of a run belongs to."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Label of the model of each suite; suites that are absent have the run's model, ``""``."""

    def of(self, key: SaeKey) -> str:
        """Return the label of an SAE's language model."""
        return self.labels.get(key.suite, "")


@dataclass(frozen=True)
class Forward:
    """One forward of a language model on one batch, and what is computed from it."""

    lm: LanguageModel
    batch: TokenBatch
    model: str
    """Label of ``lm``."""
    models: Models
    saes: Mapping[SaeKey, SaeParams]
    hidden: Mapping[int, Float[Tensor, "batch seq d_model"]]
    """``resid_post`` of ``lm`` by layer."""
    final: Float[Tensor, "batch seq d_model"] | None
    """Final hidden state, if a recorder of the pass needs it."""
    states: Mapping[str, Mapping[int, Float[Tensor, "n_tokens _"]]]
    """By model and layer: ``resid_post`` in float32 at the tokens that count, also of other models
    that read the same batch."""
    _active: dict[SaeKey, SparseFeatures] = field(default_factory=dict)

    def x(self, key: SaeKey) -> Float[Tensor, "n_tokens d_model"]:
        """Return the hidden states that an SAE reads, at the tokens that count."""
        return self.states[self.models.of(key)][key.layer]

    def active(self, key: SaeKey) -> SparseFeatures:
        """Return the active features of an SAE at the tokens that count."""
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
    """Keeps something of each batch: items that each need some SAEs at the same time."""

    folder: Path
    """Folder of its files."""
    runs_model: bool
    """Whether it runs the model from a hidden state on, so that the pass has to be of the model of
    its SAEs, and to have the final hidden state."""

    def needs(self) -> Mapping[Hashable, frozenset[SaeKey]]:
        """Return the SAEs that each item needs."""
        ...

    def only(self, items: Collection[Hashable]) -> Recorder:
        """Return a recorder of some of the items."""
        ...

    def facts(self) -> list[Any]:
        """Return what determines its content besides SAEs, models and texts: JSON values."""
        ...

    def record(self, forward: Forward) -> Kept:
        """Return what is kept of a batch; names of tensors are unique among all items."""
        ...

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return what is kept of two halves of a batch; ``n_texts`` are in the first."""
        ...


@dataclass(frozen=True)
class Recording:
    """The files of one recorder: for each text set, those of each part of the pass."""

    files: Mapping[str, tuple[tuple[Path, ...], ...]]

    def sums(self) -> dict[str, TextSums]:
        """Return the sums by text of each text set, if that is what was recorded."""
        return {name: TextSums(parts) for name, parts in self.files.items()}


@dataclass(frozen=True)
class _Part:
    """Work on batches: the share of a pass whose SAEs fit into memory together."""

    saes: Saes
    recorders: Mapping[str, Recorder]
    models: Models
    model: str
    others: Mapping[str, LanguageModel] = field(default_factory=dict)

    def to(self, device: torch.device) -> _Part:
        others = {
            label: lm if lm.is_dispatched else lm.to(device) for label, lm in self.others.items()
        }
        saes = {key: sae.to(device) for key, sae in self.saes.items()}
        return replace(self, saes=saes, others=others)

    @torch.inference_mode()
    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Collection[str]
    ) -> dict[str, Kept]:
        layers = self._layers(self.model)
        if any(self.recorders[name].runs_model for name in recorders):
            hidden, final = lm.capture(batch.ids, layers)
        else:
            hidden, final = lm.states(batch.ids, layers), None
        of_models: dict[str, Mapping[int, Tensor]] = {self.model: hidden}
        for label, other in self.others.items():
            of_models[label] = other.states(batch.ids, self._layers(label))
        states = {
            label: {layer: x[batch.counts].float() for layer, x in of_model.items()}
            for label, of_model in of_models.items()
        }
        forward = Forward(
            lm, batch, self.model, self.models, dict(self.saes), hidden, final, states
        )
        return {name: self.recorders[name].record(forward) for name in recorders}

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        return self.recorders[recorder].join(first, second, n_texts)

    def _layers(self, model: str) -> tuple[int, ...]:
        return tuple(sorted({key.layer for key in self.saes if self.models.of(key) == model}))


@dataclass(frozen=True)
class TextPass:
    """A pass over the texts: language models with their texts, and how they are run."""

    readers: Mapping[str, Reader]
    """By label; the run's own model has the label ``""``."""
    models: Models
    trainer: TrainerSpec

    def record(
        self, saes: SaeShelf, recorders: Mapping[str, Recorder], label: str
    ) -> dict[str, Recording]:
        """Record every text set; ``label`` names the pass on its progress bar.

        The pass is made in as few parts as memory allows: one for each group of SAEs that fit into
        memory together. A file that an earlier pass has kept is not made again.
        """
        files: dict[str, dict[str, list[tuple[Path, ...]]]] = {
            name: {text_set: [] for text_set in self.readers[""].tokens} for name in recorders
        }
        parts = self._parts(saes, recorders)
        for number, part in enumerate(parts, start=1):
            reader = self.readers[part.model]
            of = f" {number}/{len(parts)}" if len(parts) > 1 else ""
            for text_set, batches in reader.tokens.items():
                paths = self._paths(part, SaeShelf.of(saes), batches)
                title = f"{label} {text_set}{of}"
                run_batches(self.trainer, part, reader.lm, batches, title, paths)
                for name, of_set in paths.items():
                    files[name][text_set].append(of_set)
        return {
            name: Recording({text_set: tuple(of_set) for text_set, of_set in of_sets.items()})
            for name, of_sets in files.items()
        }

    def _paths(
        self, part: _Part, saes: SaeShelf, batches: Sequence[TokenBatch]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the file of each recorder for each batch."""
        paths = {}
        for name, recorder in part.recorders.items():
            keys = [key for key in saes if key in frozenset().union(*recorder.needs().values())]
            labels = sorted({part.model, *map(self.models.of, keys)})
            facts = [code_of(type(recorder), TextPass, LmSource), *recorder.facts()]
            facts += [self.trainer.precision, self.trainer.device_type]
            facts += [[label, *_named(self.readers[label].lm)] for label in labels]
            facts += [[list(k), self.models.of(k), saes.facts[k].identity] for k in keys]
            hashes = [hashed([*facts, *batch.content()]) for batch in batches]
            paths[name] = tuple(recorder.folder / f"{key}.safetensors" for key in hashes)
        return paths

    def _parts(self, saes: SaeShelf, recorders: Mapping[str, Recorder]) -> list[_Part]:
        """Divide the items of all recorders among parts whose SAEs fit into memory together.

        The SAEs of a part are of one language model, or of the models of one item.
        """
        together: dict[tuple[str, ...], list[frozenset[SaeKey]]] = {}
        needs = {name: recorder.needs() for name, recorder in recorders.items()}
        sets = [
            (keys, recorders[name].runs_model) for name in needs for keys in needs[name].values()
        ]
        spanned = {key for keys, _ in sets if len(self._labels(keys)) > 1 for key in keys}
        for keys, runs_model in sorted(sets, key=lambda item: -len(item[0])):
            if len(keys) > 1 or runs_model or not keys <= spanned:
                together.setdefault(tuple(sorted(self._labels(keys))), []).append(keys)
        parts = []
        for labels, groups in together.items():
            for group in saes.parts(groups):
                own = saes.only([key for key in saes if key in group])
                others = {label: self.readers[label].lm for label in labels[1:]}
                parts.append(_Part(own, {}, self.models, labels[0], others))
        chosen: list[dict[str, list[Hashable]]] = [{} for _ in parts]
        for name, items in needs.items():
            for item, keys in items.items():
                number = next(
                    number
                    for number, part in enumerate(parts)
                    if keys <= part.saes.keys()
                    and not (recorders[name].runs_model and {part.model} != self._labels(keys))
                )
                chosen[number].setdefault(name, []).append(item)
        return [
            replace(part, recorders={name: recorders[name].only(of) for name, of in items.items()})
            for part, items in zip(parts, chosen, strict=True)
            if items
        ]

    def _labels(self, keys: Collection[SaeKey]) -> set[str]:
        return set(map(self.models.of, keys))


def _named(lm: LanguageModel) -> list[str | None]:
    """Return what determines a model's hidden states."""
    return [lm.name, lm.revision, str(next(lm.parameters()).dtype)]

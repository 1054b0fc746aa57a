"""One pass over the texts for many recorders, each of which stores tensors of every batch.

All recorders of a pass share one forward of the language model for each batch, and the active
features of each SAE. Each recorder writes its own files. The name of a file is a hash of everything
that determines its content, so a run uses the files of earlier runs. The other recorders of a pass
do not change these names, unless the SAEs do not fit into memory together: then the items of all
recorders determine which SAEs share a part of the pass.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures, encode
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.readers import Reader
from saematch.texts.sums import TextSums
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec


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
        """Return the tensors of a batch. Two items never share a tensor's name."""
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
                    yield [file.get_tensor(name) for name in names]


def _tensor_names(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def tensor_name(key: SaeKey, name: str) -> str:
    """Return the name of an SAE's tensor in the file of a recorder."""
    return f"{key.suite}|{key.layer}|{name}"


@dataclass(frozen=True)
class _Part:
    """The work of a part of a pass: items whose SAEs fit into memory together."""

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
        for label, other_lm in self.others.items():
            of_models[label] = other_lm.states(batch.ids, self._layers(label))
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
    """Language models and their batches, by label; the run's own model has the label ``""``."""
    models: Models
    trainer: TrainerSpec

    def record(
        self, saes: SaeShelf, recorders: Mapping[str, Recorder], label: str
    ) -> dict[str, Recording]:
        """Record every text set; ``label`` is the name on the progress bar.

        The pass has as few parts as memory allows: one for each group of SAEs that fit into memory
        together. It skips files of earlier passes, and batches without missing files.
        """
        files: dict[str, dict[str, list[tuple[Path, ...]]]] = {
            name: {text_set: [] for text_set in self.readers[""].tokens} for name in recorders
        }
        parts = self._parts(saes, recorders)
        for number, part in enumerate(parts, start=1):
            reader = self.readers[part.model]
            position = f" {number}/{len(parts)}" if len(parts) > 1 else ""
            for text_set, batches in reader.tokens.items():
                paths = self._paths(part, saes, batches)
                title = f"{label} {text_set}{position}"
                run_batches(self.trainer, part, reader.lm, batches, title, paths)
                for name, of_set in paths.items():
                    files[name][text_set].append(of_set)
        return {
            name: Recording({text_set: tuple(of_set) for text_set, of_set in of_sets.items()})
            for name, of_sets in files.items()
        }

    def identity(self, label: str) -> list[str | None]:
        """Return everything that determines the hidden states of a model, except the texts."""
        lm = self.readers[label].lm
        dtype = str(next(lm.parameters()).dtype)
        return [lm.name, lm.revision, dtype, self.trainer.precision, self.trainer.device_type]

    def _paths(
        self, part: _Part, saes: SaeShelf, batches: Sequence[TokenBatch]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the file of each recorder for each batch."""
        paths = {}
        for name, recorder in part.recorders.items():
            needed = frozenset().union(*recorder.needs().values())
            keys = [key for key in saes if key in needed]
            facts = [code_of(type(recorder), TextPass, LmSource), *recorder.facts()]
            facts += [[label, self.identity(label)] for label in sorted(self._labels(keys))]
            facts += [[list(k), self.models.of(k), saes.facts[k].identity] for k in keys]
            hashes = [hashed([*facts, batch.identity]) for batch in batches]
            paths[name] = tuple(recorder.folder / f"{key}.safetensors" for key in hashes)
        return paths

    def _parts(self, saes: SaeShelf, recorders: Mapping[str, Recorder]) -> list[_Part]:
        """Assign each item of each recorder to one part whose SAEs fit into memory together."""
        needs = {name: recorder.needs() for name, recorder in recorders.items()}
        groups = self._groups(
            saes,
            [(keys, recorders[name].runs_model) for name in needs for keys in needs[name].values()],
        )
        items: list[dict[str, list[Hashable]]] = [{} for _ in groups]
        for name, of_recorder in needs.items():
            for item, keys in of_recorder.items():
                number = next(
                    number
                    for number, (labels, group) in enumerate(groups)
                    if keys <= group
                    and not (recorders[name].runs_model and {labels[0]} != self._labels(keys))
                )
                items[number].setdefault(name, []).append(item)
        parts = []
        for (labels, _), chosen in zip(groups, items, strict=True):
            needed = {key for name in chosen for item in chosen[name] for key in needs[name][item]}
            parts.append(
                _Part(
                    saes.only([key for key in saes if key in needed]),
                    {name: recorders[name].only(of_name) for name, of_name in chosen.items()},
                    self.models,
                    labels[0],
                    {label: self.readers[label].lm for label in labels[1:]},
                )
            )
        return [part for part in parts if part.recorders]

    def _groups(
        self, saes: SaeShelf, needs: Sequence[tuple[frozenset[SaeKey], bool]]
    ) -> list[tuple[tuple[str, ...], set[SaeKey]]]:
        """Return groups of SAEs that fit into memory together, each with labels of its models.

        ``needs`` has the SAEs of each item, and whether the item runs the model. The SAEs of a
        group belong to one model, or to the models that one item spans.
        """
        together: dict[tuple[str, ...], list[frozenset[SaeKey]]] = {}
        spanned = {key for keys, _ in needs if len(self._labels(keys)) > 1 for key in keys}
        for keys, runs_model in sorted(needs, key=lambda item: -len(item[0])):  # pairs first
            if len(keys) > 1 or runs_model or not keys <= spanned:
                together.setdefault(tuple(sorted(self._labels(keys))), []).append(keys)
        return [(labels, group) for labels, sets in together.items() for group in saes.parts(sets)]

    def _labels(self, keys: Collection[SaeKey]) -> set[str]:
        return set(map(self.models.of, keys))

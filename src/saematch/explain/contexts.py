"""Where each feature is most active: contexts kept in one pass over texts, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.store import is_kept, write
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures, encode
from saematch.sae.params import SaeOrigin
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec

HALVES = 2
"""Texts are dealt out to two halves, by even and odd number, so that a feature can be explained
twice from different texts."""


@dataclass(frozen=True)
class TextPass:
    """A language model, the batches of each text set, and how the model is run."""

    lm: LanguageModel
    tokens: Mapping[str, tuple[TokenBatch, ...]]
    trainer: TrainerSpec
    left: Path
    """Folder of what a killed pass goes on with: of this run alone, since the end removes it."""
    others: Mapping[str, TextPass] = field(default_factory=dict)
    """Of each suite that has a language model of its own, the pass of that model."""

    def of(self, key: SaeKey) -> TextPass:
        """Return the pass of an SAE's own language model."""
        return self.others.get(key.suite, self)

    @cached_property
    def texts(self) -> list[Int64[Tensor, " n"]]:
        """The token ids of each text, BOS included, in the order of their numbers."""
        batches = [batch for of_set in self.tokens.values() for batch in of_set]
        return [
            ids[:length]
            for batch in batches
            for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Contexts:
    """Places in texts where features of one SAE are active, at most one a feature and text."""

    feature: Int64[Tensor, " n"]
    text: Int64[Tensor, " n"]
    """Number of the text among those of the pass."""
    position: Int64[Tensor, " n"]
    """Of the token on which the feature is most active in this text; BOS is 0."""
    value: Float[Tensor, " n"]
    """The activation there."""

    def best(self, scores: Float[Tensor, " n"], n: int) -> Contexts:
        """Keep the ``n`` contexts of highest score of each feature and half of the texts.

        They come sorted by feature, half and score; of equal scores, the earlier text goes first.
        """
        order = torch.argsort(self.text, stable=True)
        order = order[torch.argsort(scores[order], descending=True, stable=True)]
        group = (self.feature * HALVES + self.text % HALVES)[order]
        by_group = torch.argsort(group, stable=True)
        order, group = order[by_group], group[by_group]
        starts = torch.searchsorted(group, group)  # of each entry's group
        return self[order[torch.arange(len(group)) - starts < n]]

    def of(self, feature: int) -> Contexts:
        """Return those of one feature; the contexts must be sorted by feature."""
        start, end = torch.searchsorted(self.feature, torch.tensor([feature, feature + 1])).tolist()
        return self[torch.arange(start, end)]

    def __getitem__(self, chosen: Tensor) -> Contexts:
        """Return some of the contexts."""
        return Contexts(*(getattr(self, name)[chosen] for name in _TENSORS))

    def join(self, other: Contexts) -> Contexts:
        """Return the contexts of both."""
        return Contexts(
            *(torch.cat([getattr(self, name), getattr(other, name)]) for name in _TENSORS)
        )

    def chance(self) -> Float[Tensor, " n"]:
        """Return a number between 0 and 1 for each context, as good as random, always the same.

        The contexts of highest number are a sample of all, whatever the order of the batches.
        """
        mixed = self.text * 0x9E3779B1 + self.feature * 0x85EBCA77
        for factor in (0x2C1B3C6D, 0x297A2D39):
            mixed = ((mixed ^ ((mixed & _BITS) >> 15)) * factor) & _BITS
        return ((mixed ^ (mixed >> 15)) & _BITS).double() / (_BITS + 1)


_TENSORS = ("feature", "text", "position", "value")
_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class KeptContexts:
    """What a pass keeps of one SAE."""

    top: Contexts
    """The most active contexts of each feature and half."""
    sample: Contexts
    """A random sample of the contexts of each feature and half."""

    def add(self, batch: Contexts, n_top: int, n_samples: int) -> KeptContexts:
        """Return what is kept with another batch."""
        top, sample = self.top.join(batch), self.sample.join(batch)
        return KeptContexts(top.best(top.value, n_top), sample.best(sample.chance(), n_samples))


@dataclass(frozen=True)
class Peaks:
    """Work on one batch: the token of each text on which a feature is most active."""

    saes: Saes

    def to(self, device: torch.device) -> Peaks:
        """Move the SAEs to a device."""
        return replace(self, saes={key: sae.to(device) for key, sae in self.saes.items()})

    @torch.inference_mode()
    def __call__(self, lm: LanguageModel, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the columns of ``Contexts`` for each SAE, named by suite, layer and column."""
        layers = tuple(sorted({key.layer for key in self.saes}))
        hidden = lm.states(batch.ids, layers)
        text, position = torch.nonzero(batch.counts, as_tuple=True)
        kept = {}
        for key, sae in self.saes.items():
            with torch.autocast(batch.ids.device.type, enabled=False):
                active = encode(sae, hidden[key.layer][batch.counts].float())
            peaks = find_peaks(active, text, position)
            for name in _TENSORS:
                kept[_name(key, name)] = getattr(peaks, name)
        return kept

    def join(
        self, one: dict[str, Tensor], other: dict[str, Tensor], n_texts: int
    ) -> dict[str, Tensor]:
        """Join the peaks of ``n_texts`` texts and of the texts that follow them in the batch."""
        after = {_name(key, "text"): n_texts for key in self.saes}
        return {n: torch.cat([found, other[n] + after.get(n, 0)]) for n, found in one.items()}


def find_peaks(
    active: SparseFeatures, text: Int64[Tensor, " n_tokens"], position: Int64[Tensor, " n_tokens"]
) -> Contexts:
    """Return where each feature is most active in each text; of equal ones, the first token."""
    tokens = active.tokens()
    order = torch.argsort(active.values, descending=True, stable=True)
    group = (text[tokens] * active.n_features + active.features)[order]
    order = order[torch.argsort(group, stable=True)]
    group = group.sort().values
    first = torch.ones(len(group), dtype=torch.bool, device=group.device)
    first[1:] = group[1:] != group[:-1]
    peaks = order[first]
    return Contexts(
        active.features[peaks], text[tokens[peaks]], position[tokens[peaks]], active.values[peaks]
    )


def collect_contexts(
    saes: Saes, texts: TextPass, n_top: int, n_samples: int, folder: Path
) -> dict[SaeKey, KeptContexts]:
    """Return the contexts of every SAE from one pass over the texts for each language model.

    SAEs that do not fit into memory together are looked at in several passes. ``folder`` keeps the
    contexts by a hash of all that determines them: a pass that was made is read, one of this run
    that was killed goes on with the next batch.
    """
    shelf = SaeShelf.of(saes)
    passes: dict[int, tuple[TextPass, list[SaeKey]]] = {}
    for key in shelf:
        own = texts.of(key)
        passes.setdefault(id(own), (own, []))[1].append(key)
    kept: dict[SaeKey, KeptContexts] = {}
    for own, keys in passes.values():
        kept |= _of_model(shelf.only(keys), own, n_top, n_samples, folder)
    return {key: kept[key] for key in shelf}


def _of_model(
    shelf: SaeShelf, texts: TextPass, n_top: int, n_samples: int, folder: Path
) -> dict[SaeKey, KeptContexts]:
    """Return the contexts of SAEs of one language model."""
    first: dict[SaeOrigin, SaeKey] = {}
    twins = {key: first.setdefault(sae.origin, key) for key, sae in shelf.facts.items()}
    kept: dict[SaeKey, KeptContexts] = {}
    for part in shelf.parts([{key} for key in first.values()]):
        some = shelf.only([key for key in first.values() if key in part])
        kept |= _collect(some, texts, n_top, n_samples, folder)
    return {key: kept[twin] for key, twin in twins.items()}


def _collect(
    saes: SaeShelf, texts: TextPass, n_top: int, n_samples: int, folder: Path
) -> dict[SaeKey, KeptContexts]:
    work = Peaks(saes)
    lm, trainer = texts.lm, texts.trainer
    code = code_of(collect_contexts, LmSource)
    about = [code, lm.name, lm.revision, str(next(lm.parameters()).dtype)]
    about += [trainer.precision, trainer.device_type]
    about += [[list(key), sae.identity] for key, sae in saes.facts.items()]
    keys = {
        name: [hashed([*about, *b.content()]) for b in batches]
        for name, batches in texts.tokens.items()
    }
    path = folder / f"{hashed([keys, n_top, n_samples])}.safetensors"
    if not is_kept(path):
        every = {n: [texts.left / f"{k}.safetensors" for k in of] for n, of in keys.items()}
        for name, batches in texts.tokens.items():
            run_batches(trainer, work, lm, batches, f"contexts in {name}", every[name])
        parts = [part for of_set in every.values() for part in of_set]
        sizes = [len(b.ids) for of_set in texts.tokens.values() for b in of_set]
        bar = tqdm(saes, desc="merge contexts", unit="SAE", leave=False)
        _write(path, {key: _merge(key, parts, sizes, n_top, n_samples) for key in bar})
    shutil.rmtree(texts.left, ignore_errors=True)  # another run may have made the same pass
    return _read(path, list(saes))


def _merge(
    key: SaeKey, parts: Iterable[Path], sizes: Iterable[int], n_top: int, n_samples: int
) -> KeptContexts:
    none = torch.zeros(0, dtype=torch.int64)
    start, batches = 0, []
    for path, size in zip(parts, sizes, strict=True):
        batches.append((path, start))
        start += size

    def add(kept: KeptContexts, batch: tuple[Path, int]) -> KeptContexts:
        with safe_open(batch[0], framework="pt") as file:
            found = _contexts(file, key, "")
        return kept.add(replace(found, text=found.text + batch[1]), n_top, n_samples)

    nothing = Contexts(none, none, none, none.float())
    return reduce(add, batches, KeptContexts(nothing, nothing))


def _name(key: SaeKey, name: str) -> str:
    return f"{key.suite}|{key.layer}|{name}"


def _write(path: Path, kept: Mapping[SaeKey, KeptContexts]) -> None:
    tensors = {
        _name(key, f"{kind}|{name}"): getattr(getattr(of_sae, kind), name).contiguous()
        for key, of_sae in kept.items()
        for kind in ("top", "sample")
        for name in _TENSORS
    }
    write(path, tensors)


def _read(path: Path, keys: Iterable[SaeKey]) -> dict[SaeKey, KeptContexts]:
    with safe_open(path, framework="pt") as file:
        return {
            key: KeptContexts(_contexts(file, key, "top|"), _contexts(file, key, "sample|"))
            for key in keys
        }


def _contexts(file: Any, key: SaeKey, kind: str) -> Contexts:
    return Contexts(*(file.get_tensor(_name(key, kind + name)) for name in _TENSORS))

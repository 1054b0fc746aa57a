"""Contexts: positions where each feature is most active, recorded for each batch of texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.progress import progress
from saematch.core.store import is_kept, read, write
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Forward, Recording, tensor_name
from saematch.sae.suites import SaeShelf
from saematch.texts.batch_work import Kept

HALVES = 2
"""Number of halves of the texts: those with even and those with odd numbers. A feature can be
explained twice, from different texts."""
MERGED_AT_ONCE = 1_000_000
"""Contexts of an SAE's batches that are merged together; a merge takes about 100 bytes for each."""


@dataclass(frozen=True)
class Contexts:
    """Positions in texts where features of one SAE are active, at most one per feature and text."""

    feature: Int64[Tensor, " n"]
    text: Int64[Tensor, " n"]
    """Number of the text in ``Reader.texts``."""
    position: Int64[Tensor, " n"]
    """Position of the token on which the feature is most active in this text; BOS is 0."""
    value: Float[Tensor, " n"]
    """Activation on this token."""

    def best(self, scores: Float[Tensor, " n"], n: int) -> Contexts:
        """Return the ``n`` contexts of highest score of each feature and half of the texts.

        They are sorted by feature, half and score. If scores are equal, the earlier text is first.
        """
        order = torch.argsort(self.text, stable=True)
        order = order[torch.argsort(scores[order], descending=True, stable=True)]
        group = (self.feature * HALVES + self.text % HALVES)[order]
        by_group = torch.argsort(group, stable=True)
        order, group = order[by_group], group[by_group]
        starts = torch.searchsorted(group, group)  # of each entry's group
        return self[order[torch.arange(len(group)) - starts < n]]

    @cached_property
    def _groups(self) -> Int64[np.ndarray, " n"]:
        return (self.feature * HALVES + self.text % HALVES).numpy()

    def of(self, feature: int, half: int) -> Contexts:
        """Return the contexts of one feature and half; see ``best`` for the order of ``self``."""
        group = feature * HALVES + half
        start, end = np.searchsorted(self._groups, [group, group + 1])
        return self[start:end]

    def __getitem__(self, chosen: Tensor | slice) -> Contexts:
        """Return the contexts at these indices, or where a mask is true."""
        return Contexts(*(getattr(self, name)[chosen] for name in _TENSORS))

    def join(self, *others: Contexts) -> Contexts:
        """Return these contexts and those of others."""
        parts = (self, *others)
        return Contexts(*(torch.cat([getattr(p, name) for p in parts]) for name in _TENSORS))

    def chance(self) -> Float[Tensor, " n"]:
        """Return a pseudo-random number in [0, 1) for each context: a hash of feature and text.

        The contexts of highest number are thus a random sample that does not depend on the batches.
        """
        mixed = self.text * 0x9E3779B1 + self.feature * 0x85EBCA77
        for factor in (0x2C1B3C6D, 0x297A2D39):
            mixed = ((mixed ^ ((mixed & _BITS) >> 15)) * factor) & _BITS
        return ((mixed ^ (mixed >> 15)) & _BITS).double() / (_BITS + 1)


_TENSORS = ("feature", "text", "position", "value")
_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class KeptContexts:
    """Contexts of one SAE over all texts."""

    top: Contexts
    """The most active contexts of each feature and half."""
    sample: Contexts
    """A random sample of the contexts of each feature and half."""

    @classmethod
    def none(cls) -> KeptContexts:
        """Return the contexts over no texts."""
        empty = torch.zeros(0, dtype=torch.int64)
        contexts = Contexts(empty, empty, empty, empty.float())
        return cls(contexts, contexts)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> KeptContexts:
        """Return the contexts from the result of ``tensors``."""
        return cls(
            *(Contexts(*(tensors[f"{kind}|{name}"] for name in _TENSORS)) for kind in _KINDS)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the contexts as named tensors."""
        return {
            f"{kind}|{name}": getattr(getattr(self, kind), name).contiguous()
            for kind in _KINDS
            for name in _TENSORS
        }

    def add(self, batches: Sequence[Contexts], n_top: int, n_samples: int) -> KeptContexts:
        """Return the contexts over the texts so far and further batches."""
        top, sample = self.top.join(*batches), self.sample.join(*batches)
        return KeptContexts(top.best(top.value, n_top), sample.best(sample.chance(), n_samples))


_KINDS = ("top", "sample")


def find_peaks(
    active: SparseFeatures, text: Int64[Tensor, " n_tokens"], position: Int64[Tensor, " n_tokens"]
) -> Contexts:
    """Return the position of each feature's largest activation in each text; ties go to the first.

    ``text`` and ``position`` are those of each token of ``active``.
    """
    tokens = active.tokens()
    group = text[tokens] * active.n_features + active.features
    n_groups = (int(text.max()) + 1 if len(text) else 0) * active.n_features
    largest = active.values.new_zeros(n_groups).scatter_reduce_(0, group, active.values, "amax")
    peaks = torch.nonzero(active.values == largest[group]).flatten()
    group, order = group[peaks].sort(stable=True)
    peaks = peaks[order[torch.diff(group, prepend=group.new_tensor([-1])) > 0]]
    return Contexts(
        active.features[peaks], text[tokens[peaks]], position[tokens[peaks]], active.values[peaks]
    )


@dataclass(frozen=True)
class ContextRecorder:
    """Recorder of the position of each feature's largest activation in each text."""

    runs_model: ClassVar[bool] = False

    folder: Path
    saes: tuple[SaeKey, ...]

    def needs(self) -> dict[SaeKey, frozenset[SaeKey]]:
        """Return one item for each SAE."""
        return {key: frozenset({key}) for key in self.saes}

    def only(self, items: Collection[SaeKey]) -> ContextRecorder:
        """Return a recorder of some of the SAEs."""
        return replace(self, saes=tuple(items))

    def facts(self) -> list[Any]:
        """Return nothing: SAEs, models and texts determine the contexts."""
        return []

    def record(self, forward: Forward) -> Kept:
        """Return the contexts of each SAE; texts are numbered within the batch."""
        text, position = torch.nonzero(forward.batch.counts, as_tuple=True)
        kept: Kept = {}
        for key in self.saes:
            peaks = find_peaks(forward.active(key), text, position)
            kept |= {tensor_name(key, name): getattr(peaks, name) for name in _TENSORS}
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the contexts of both halves of a batch."""
        shifts = {tensor_name(key, "text"): n_texts for key in self.saes}
        return {
            name: torch.cat([tensor, second[name] + shifts.get(name, 0)])
            for name, tensor in first.items()
        }


@dataclass(frozen=True)
class ContextStore:
    """Kept contexts of SAEs: one file for each SAE, which runs on the same texts share."""

    saes: SaeShelf
    texts: TextPass
    folder: Path
    n_top: int
    """Most active contexts of each feature and half."""
    n_samples: int
    """Random contexts of each feature and half."""

    def recorder(self, folder: Path) -> ContextRecorder | None:
        """Return the recorder of the contexts that are not kept yet; None if all are kept."""
        missing = tuple(key for key, path in self._paths.items() if not is_kept(path))
        return ContextRecorder(folder, missing) if missing else None

    def contexts(self, recording: Recording | None) -> dict[SaeKey, KeptContexts]:
        """Return the contexts of every SAE.

        Contexts that are not kept yet are merged from the recording of ``recorder`` and written.
        """
        kept, merged = {}, []
        with progress("merge contexts", len(self._paths), "SAE") as bar:
            for key, path in self._paths.items():
                tensors = read(path)
                if tensors is None:
                    assert recording is not None
                    kept[key] = self._merge(key, recording)
                    merged.append(key)
                else:
                    kept[key] = KeptContexts.of(tensors)
                bar.advance()
        for key in (
            merged
        ):  # after all merges, since a kill between writes would change the recorder and its files
            write(self._paths[key], kept[key].tensors())
        return {key: kept[twin] for key, twin in self._twins.items()}

    @cached_property
    def _twins(self) -> dict[SaeKey, SaeKey]:
        return self.texts.models.twins(self.saes)

    @cached_property
    def _paths(self) -> dict[SaeKey, Path]:
        """File of each SAE that is recorded."""
        code = code_of(ContextStore, LmSource)
        labels = set(map(self.texts.models.of, self._twins.values()))
        texts = {
            label: [self.texts.identity(label), *self._batch_hashes(label)] for label in labels
        }
        paths = {}
        for key in dict.fromkeys(self._twins.values()):
            facts = [code, texts[self.texts.models.of(key)], self.saes.facts[key].identity]
            name = hashed([*facts, self.n_top, self.n_samples])
            paths[key] = self.folder / f"{name}.safetensors"
        return paths

    def _batch_hashes(self, label: str) -> list[list[Any]]:
        tokens = self.texts.readers[label].tokens
        return [[name, *(b.identity for b in batches)] for name, batches in tokens.items()]

    def _merge(self, key: SaeKey, recording: Recording) -> KeptContexts:
        """Return the contexts of an SAE over all batches, with the texts' numbers of its model."""
        tokens = self.texts.readers[self.texts.models.of(key)].tokens
        sizes = [len(batch.ids) for batches in tokens.values() for batch in batches]
        names = [tensor_name(key, name) for name in _TENSORS]
        kept, start = KeptContexts.none(), 0
        waiting: list[Contexts] = []
        for size, columns in zip(sizes, recording.batches(names), strict=True):
            batch = Contexts(*columns)
            waiting.append(replace(batch, text=batch.text + start))
            start += size
            if sum(len(contexts.feature) for contexts in waiting) > MERGED_AT_ONCE:
                kept, waiting = kept.add(waiting, self.n_top, self.n_samples), []
        return kept.add(waiting, self.n_top, self.n_samples)

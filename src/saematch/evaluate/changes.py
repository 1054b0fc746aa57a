"""Record source activations and changes of the hidden state, to fit gains on calibration texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.pairs import Pair, SaeKey
from saematch.sae.recorders import Forward, Recording, pair_tensor_name, tensor_name
from saematch.texts.batch_work import Kept

CODES = ("counts", "features", "values")
"""Tensors of a source SAE: active features of each token, and their numbers and activations."""
CHANGE = "change"
"""Tensor of a pair: hidden state of the target minus that of the source."""


@dataclass(frozen=True)
class ChangeRecorder:
    """Records the active features of each source, and ``x_t - x_s`` of each pair.

    A batch takes ``8 * L0`` bytes a token for each source, and ``4 * d_model`` for each pair. Sums
    over the tokens of a batch would take more, since a batch has more active features than tokens.
    """

    folder: Path
    pairs: tuple[Pair, ...]
    runs_model: ClassVar[bool] = False

    def needs(self) -> dict[Pair, frozenset[SaeKey]]:
        """Return both SAEs of each pair."""
        return {pair: frozenset(pair) for pair in self.pairs}

    def only(self, items: Collection[Pair]) -> ChangeRecorder:
        """Return a recorder of some of the pairs."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair in items))

    def facts(self) -> list[Any]:
        """Return the pairs."""
        return [list(self.pairs)]

    def record(self, forward: Forward) -> Kept:
        """Record one batch. The first axis of each tensor is the token or the active feature."""
        kept: Kept = {}
        for pair in self.pairs:
            active = forward.active(pair.source)
            codes = (active.counts().int(), active.features.int(), active.values)
            names = (tensor_name(pair.source, name) for name in CODES)
            kept |= dict(zip(names, codes, strict=True))
            kept[pair_tensor_name(pair, CHANGE)] = forward.x(pair.target) - forward.x(pair.source)
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the tensors of both halves, one text after the other."""
        return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


class ChangeBatch(NamedTuple):
    """Activations and changes at the tokens of one batch."""

    activations: csr_array
    """Activations of the live features in units of their decoder norm, ``[n_tokens, n_live]``."""
    change: Float[np.ndarray, "n_tokens d_model"]
    """Hidden state of the target minus that of the source."""


@dataclass(frozen=True)
class Changes:
    """The recording of one pair, read batch by batch in float64."""

    recording: Recording
    pair: Pair
    scale: Float[Tensor, " n_source"]
    """Scale of the fold ``decoder_norm``, by which activations are divided."""

    @cached_property
    def live(self) -> Int64[np.ndarray, " n_live"]:
        """The source features that are active on the recorded texts, in order."""
        is_active = np.zeros(len(self.scale), bool)
        for (features,) in self.recording.batches([tensor_name(self.pair.source, "features")]):
            is_active[features.numpy()] = True
        return np.flatnonzero(is_active)

    def activations(self) -> Iterator[csr_array]:
        """Yield the activations of each batch, ``[n_tokens, n_live]``."""
        for counts, features, values in self.recording.batches(self._codes):
            yield self._matrix(counts, features, values)

    def batches(self) -> Iterator[ChangeBatch]:
        """Yield activations and changes of each batch."""
        names = [*self._codes, pair_tensor_name(self.pair, CHANGE)]
        for counts, features, values, change in self.recording.batches(names):
            activations = self._matrix(counts, features, values)
            yield ChangeBatch(activations, change.double().numpy())

    @property
    def _codes(self) -> list[str]:
        return [tensor_name(self.pair.source, name) for name in CODES]

    def _matrix(self, counts: Tensor, features: Tensor, values: Tensor) -> csr_array:
        ends = np.concatenate([[0], np.cumsum(counts.numpy())])
        columns = np.searchsorted(self.live, features.numpy())
        data = values.double() / self.scale[features.long()].double()
        return csr_array((data.numpy(), columns, ends), shape=(len(counts), len(self.live)))

"""Codes: the active features of SAEs and their activations at every token that counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from saematch.core.pairs import SaeKey
from saematch.sae.activations import SparseFeatures
from saematch.sae.recorders import Forward, Recording, tensor_name
from saematch.texts.batch_work import Kept

PARTS = ("counts", "features", "values")
"""Tensors of an SAE: number of active features of each token, and the feature and activation of
each active feature, token by token."""
NARROW = 2**16
"""Largest number of features whose numbers fit into 16 bits."""


@dataclass(frozen=True)
class CodesRecorder:
    """Records the codes of SAEs, from which every statistic of every pair can be computed.

    An active feature of a token takes 6 bytes, or 8 in SAEs of more than 65,536 features.
    """

    folder: Path
    keys: tuple[SaeKey, ...]
    runs_model: ClassVar[bool] = False

    def needs(self) -> dict[SaeKey, frozenset[SaeKey]]:
        """Return each SAE as an item of its own."""
        return {key: frozenset([key]) for key in self.keys}

    def only(self, items: Collection[SaeKey]) -> CodesRecorder:
        """Return a recorder of some of the SAEs."""
        return replace(self, keys=tuple(key for key in self.keys if key in items))

    def facts(self) -> list[Any]:
        """Return nothing: codes depend on SAEs, model and texts alone."""
        return []

    def record(self, forward: Forward) -> Kept:
        """Record one batch."""
        kept: Kept = {}
        for key in self.keys:
            active = forward.active(key)
            kind = torch.uint16 if active.n_features <= NARROW else torch.int32
            codes = active.counts().int(), active.features.cpu().to(kind), active.values.float()
            kept |= {
                tensor_name(key, part): tensor.cpu()
                for part, tensor in zip(PARTS, codes, strict=True)
            }
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the codes of both halves of a batch."""
        return {name: torch.cat([first[name], second[name]]) for name in first}


def codes_of(recording: Recording, key: SaeKey, n_features: int) -> Iterator[SparseFeatures]:
    """Yield the recorded codes of one SAE, batch by batch, one text set after another."""
    names: Sequence[str] = [tensor_name(key, part) for part in PARTS]
    for counts, features, values in recording.batches(names):
        n_active = counts.long()
        yield SparseFeatures(n_active.cumsum(0) - n_active, features.long(), values, n_features)

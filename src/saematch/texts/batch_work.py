"""Work on batches of texts, and what it keeps of each batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch

Kept = dict[str, torch.Tensor]
"""Content of one file: what one recorder keeps of a batch."""


@runtime_checkable
class BatchWork(Protocol):
    """Work on one batch of texts, for several recorders at once."""

    def to(self, device: torch.device) -> BatchWork:
        """Return the same work with its tensors loaded and on a device."""
        ...

    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Collection[str]
    ) -> dict[str, Kept]:
        """Return what each of the named recorders keeps of the batch."""
        ...

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return what a recorder keeps of two halves of a batch; ``n_texts`` are in the first."""
        ...


class Todo(NamedTuple):
    """A batch with missing files."""

    tokens: TokenBatch
    paths: dict[str, str]
    """Missing file of each recorder."""

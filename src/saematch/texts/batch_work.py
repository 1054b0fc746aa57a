"""What work on batches of texts consists of."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch

from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch

Kept = dict[str, torch.Tensor]
"""What is kept of a batch."""


@runtime_checkable
class BatchWork(Protocol):
    """What is done with one batch of texts."""

    def to(self, device: torch.device) -> BatchWork:
        """Return the same with its tensors loaded and on a device."""
        ...

    def __call__(self, lm: LanguageModel, batch: TokenBatch) -> Kept:
        """Return what is kept of the batch."""
        ...

    def join(self, one: Kept, other: Kept, n_texts: int) -> Kept:
        """Return what is kept of two halves together; ``n_texts`` are in the first."""
        ...


class Todo(NamedTuple):
    """A batch, and the file for what is kept of it."""

    tokens: TokenBatch
    path: str

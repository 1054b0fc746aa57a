"""Work on batches of texts, and the tensors that it stores of each batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch

Kept = dict[str, torch.Tensor]
"""Content of one file: the tensors that one recorder stores of a batch."""


@runtime_checkable
class BatchWork(Protocol):
    """Work on one batch of texts, for several recorders at once."""

    def to(self, device: torch.device) -> BatchWork:
        """Return the same work with its tensors loaded and on a device."""
        ...

    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Collection[str]
    ) -> dict[str, Kept]:
        """Return the tensors that each of the named recorders stores of the batch."""
        ...

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the tensors of a batch from those of its halves; the first has ``n_texts``."""
        ...


class Todo(NamedTuple):
    """A batch with missing files."""

    tokens: TokenBatch
    paths: dict[str, str]
    """Missing file of each recorder."""
    lock: str | None = None
    """Lock of the batch, if several processes share the work."""
    wait: bool = False
    """Whether to wait for another process that does the batch, instead of skipping it."""

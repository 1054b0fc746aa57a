"""Work on texts, batch by batch: where and how precisely, and going on after a kill."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from saematch.core.errors import InputError
from saematch.core.memory import keep_freed_memory
from saematch.core.specs import AtLeast1, spec
from saematch.core.store import missing
from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@spec("trainer")
class TrainerSpec:
    """Spec of Lightning's Trainer: where and how precisely the language model runs.

    SAEs compute in float32 whatever the precision of the language model.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    """``32-true``, ``bf16-mixed`` or ``16-mixed``; a language model loaded in half precision
    (``model.dtype``) computes in it."""
    batch_size: AtLeast1 = 16
    """Texts in a batch."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}; for "
                "a language model wholly in half precision set model.dtype=bfloat16"
            )
        if self.devices != 1 and self.strategy != "ddp_spawn":
            raise InputError(
                f"trainer.devices={self.devices} needs trainer.strategy=ddp_spawn: only work "
                "on texts is spread over devices, the rest of a run is one process"
            )
        if self.batch_size < 1:
            raise InputError(f"trainer.batch_size={self.batch_size}: at least 1 is needed")

    @property
    def device_type(self) -> str:
        """What the language model runs on."""
        if self.accelerator != "auto":
            return self.accelerator
        return "gpu" if torch.cuda.is_available() else "cpu"

    def at_most(self, n: int) -> TrainerSpec:
        """Return the same on no more devices than there is work for."""
        if self.devices == 1:
            return self
        there = torch.cuda.device_count() if self.device_type in ("gpu", "cuda") else n
        wanted = int(self.devices) if str(self.devices).isdigit() else there
        if wanted <= n:
            return self
        return replace(self, devices=n, strategy="auto" if n == 1 else self.strategy)


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


def run_batches(
    trainer: TrainerSpec,
    work: BatchWork,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    label: str,
    paths: Sequence[Path],
) -> None:
    """Do the work on every batch; ``paths`` hold what is kept of each afterwards.

    A batch whose file is there and whole is not done again. A batch that does not fit into the
    device's memory is done in halves, and later ones in pieces of the size that fitted. Raises
    ``InputError`` if a single text does not fit, or the work and the language model do not.
    """
    left = [Todo(batches[number], str(paths[number])) for number in missing(paths)]
    if len(left) < len(paths):
        log.info("%s: %d of %d batches were done before", label, len(paths) - len(left), len(paths))
    if left:
        from saematch.texts.lightning_runner import run_with_lightning  # takes seconds to import

        if trainer.device_type == "cpu":
            keep_freed_memory()
        run_with_lightning(
            trainer.at_most(len(left)), work.to(torch.device("cpu")), lm, left, label
        )
        lost = [path for path in paths if not path.exists()]
        if lost:
            raise RuntimeError(f"{lost[0]} was not written by the runner")

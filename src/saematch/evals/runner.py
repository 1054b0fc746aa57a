"""The Lightning runner of work on texts: devices, precision, progress, going on after a kill."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader

from saematch.data.tokens import TokenBatch
from saematch.evals.sums import missing, write_sums
from saematch.lm.hooks import LanguageModel

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
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
    batch_size: int = 16
    """Texts in a batch."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}; for "
                "a language model wholly in half precision set model.dtype=bfloat16"
            )
        if self.devices != 1 and self.strategy != "ddp_spawn":
            raise ValueError(
                f"trainer.devices={self.devices} needs trainer.strategy=ddp_spawn: only work "
                "on texts is spread over devices, the rest of a run is one process"
            )
        if self.batch_size < 1:
            raise ValueError(f"trainer.batch_size={self.batch_size}: at least 1 is needed")

    @property
    def device_type(self) -> str:
        """What the language model runs on."""
        if self.accelerator != "auto":
            return self.accelerator
        return "gpu" if torch.cuda.is_available() else "cpu"

    def build(self, label: str) -> L.Trainer:
        """Return a Trainer that writes nothing itself and shows ``label`` on its bar."""
        for name in (
            "lightning.pytorch.utilities.rank_zero",
            "lightning.pytorch.accelerators.cuda",
        ):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return L.Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                strategy=self.strategy,
                precision=self.precision,  # type: ignore[arg-type]
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[_Bar(label)],
            )
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {error}") from error


@runtime_checkable
class BatchWork(Protocol):
    """What is done with one batch of texts."""

    def to(self, device: torch.device) -> BatchWork:
        """Return the same with its tensors on another device."""
        ...

    def __call__(self, lm: LanguageModel, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Return what is kept of the batch."""
        ...


def run_batches(
    trainer: TrainerSpec,
    work: BatchWork,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    label: str,
    paths: Sequence[Path],
) -> None:
    """Do the work on every batch; ``paths`` hold what is kept of each afterwards.

    A batch whose file is there already is not done again.
    """
    left = [_Todo(batches[number], str(paths[number])) for number in missing(paths)]
    if len(left) < len(paths):
        log.info("%s: %d of %d batches were done before", label, len(paths) - len(left), len(paths))
    if left:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
            trainer.build(label).test(_Runner(work, lm, left), verbose=False)
        lost = missing(paths)
        if lost:
            raise RuntimeError(f"{paths[lost[0]]} was not written by the runner")


class _Todo(NamedTuple):
    tokens: TokenBatch
    path: str


class _Runner(L.LightningModule):
    """Feeds batches to the work and writes what is kept of each."""

    def __init__(self, work: BatchWork, lm: LanguageModel, left: Sequence[_Todo]) -> None:
        super().__init__()
        self.lm = lm
        self.work, self.left = work, left

    def test_dataloader(self) -> DataLoader[Any]:
        sampler = None
        if self.trainer.world_size > 1:  # Lightning's own sampler would repeat batches
            sampler = UnrepeatedDistributedSampler(
                self.left,
                num_replicas=self.trainer.world_size,
                rank=self.trainer.global_rank,
                shuffle=False,
            )
        return DataLoader(self.left, batch_size=None, sampler=sampler)  # type: ignore[arg-type]

    def on_test_start(self) -> None:
        self.work = self.work.to(self.device)

    def test_step(self, batch: _Todo, batch_idx: int) -> None:
        write_sums(Path(batch.path), self.work(self.lm, batch.tokens))


class _Bar(TQDMProgressBar):
    """Lightning's progress bar with a name of our own."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    @property
    def test_description(self) -> str:
        return self.label

"""The Lightning runner of work on texts: devices, precision, progress, going on after a kill."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from saematch.data.tokens import TokenBatch
from saematch.evals.sums import missing, write_sums
from saematch.lm.hooks import LanguageModel
from saematch.memory import keep_freed_memory

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

    def at_most(self, n: int) -> TrainerSpec:
        """Return the same on no more devices than there is work for."""
        if self.devices == 1:
            return self
        there = torch.cuda.device_count() if self.device_type in ("gpu", "cuda") else n
        wanted = int(self.devices) if str(self.devices).isdigit() else there
        if wanted <= n:
            return self
        return replace(self, devices=n, strategy="auto" if n == 1 else self.strategy)

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


def run_batches(
    trainer: TrainerSpec,
    work: BatchWork,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    label: str,
    paths: Sequence[Path],
) -> None:
    """Do the work on every batch; ``paths`` hold what is kept of each afterwards.

    A batch whose file is there already is not done again. A batch that does not fit into the
    device's memory is done in halves, and later ones in pieces of the size that fitted. Raises
    ``ValueError`` if a single text does not fit, or the work and the language model do not.
    """
    left = [_Todo(batches[number], str(paths[number])) for number in missing(paths)]
    if len(left) < len(paths):
        log.info("%s: %d of %d batches were done before", label, len(paths) - len(left), len(paths))
    if left:
        if trainer.device_type == "cpu":
            keep_freed_memory()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
            _test(
                trainer.at_most(len(left)).build(label),
                _Runner(work.to(torch.device("cpu")), lm, left),
            )
        lost = missing(paths)
        if lost:
            raise RuntimeError(f"{paths[lost[0]]} was not written by the runner")


def _test(trainer: L.Trainer, runner: _Runner) -> None:
    try:
        trainer.test(runner, verbose=False)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the language model and the SAEs do not fit into the device's memory: {LESS} "
            "trainer=large spreads the language model"
        ) from error
    except ProcessRaisedException as error:  # in one of several processes
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        kind, _, reason = last.partition(": ")
        if kind == "ValueError":
            raise ValueError(reason) from error
        if kind.endswith("OutOfMemoryError"):
            raise ValueError(f"a device's memory is too small: {LESS} {reason}") from error
        raise
    finally:
        runner.put_down()


LESS = "lower sae_memory, set model.dtype=bfloat16, or trainer.precision=bf16-mixed;"
"""What takes less of a device's memory, whatever the batch."""


class _Todo(NamedTuple):
    tokens: TokenBatch
    path: str


class _Runner(L.LightningModule):
    """Feeds batches to the work and writes what is kept of each."""

    def __init__(self, work: BatchWork, lm: LanguageModel, left: Sequence[_Todo]) -> None:
        super().__init__()
        self._lm = [lm]  # in a list, it is no part of this module
        if not lm.is_dispatched:
            self.lm = lm  # a part, which Lightning takes to the device
        self.work, self.left = work, left
        self.fits = max(len(todo.tokens.ids) for todo in left)

    def put_down(self) -> None:
        """Let go of the SAEs: Lightning's own objects hold the runner until Python cleans up."""
        del self.work

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
        path = Path(batch.path)
        if not path.exists():  # another run may be at the same work
            write_sums(path, self._done(batch.tokens))

    def _done(self, tokens: TokenBatch) -> Kept:
        """Do the work on some texts, in pieces that fit into memory."""
        n = len(tokens.ids)
        if n <= self.fits:
            try:
                return self.work(self._lm[0], tokens)
            except torch.OutOfMemoryError as error:
                length = tokens.ids.shape[1]
                if n == 1:
                    raise ValueError(
                        f"one text of {length} tokens does not fit into the device's memory "
                        f"beside the language model and the SAEs: lower dataset.max_tokens; or "
                        f"{LESS} trainer=large spreads the language model"
                    ) from error
                self.fits = (n + 1) // 2
                said = "%d texts of %d tokens do not fit into memory: going on with %d at a time"
                log.warning(said, n, length, self.fits)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (n + 1) // 2
        one, other = (self._done(_texts(tokens, *ends)) for ends in ((0, half), (half, n)))
        return self.work.join(one, other, half)


def _texts(tokens: TokenBatch, start: int, end: int) -> TokenBatch:
    """Return some texts of a batch, padded as they were."""
    parts = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return TokenBatch(**{name: part[start:end] for name, part in parts.items()})


class _Bar(TQDMProgressBar):
    """Lightning's progress bar with a name of our own."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    @property
    def test_description(self) -> str:
        return self.label

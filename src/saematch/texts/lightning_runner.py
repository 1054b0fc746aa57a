"""Run work on texts with Lightning, which manages devices, precision, processes and progress."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import dropwhile
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from saematch.core.claims import claim
from saematch.core.errors import InputError
from saematch.core.memory import is_out_of_memory
from saematch.core.progress import Bar
from saematch.core.store import is_kept
from saematch.lm.hooks import LanguageModel
from saematch.texts.batch_work import BatchWork, Kept, Todo
from saematch.texts.sums import write_sums
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec

log = logging.getLogger(__name__)


def run_with_lightning(
    spec: TrainerSpec, work: BatchWork, lm: LanguageModel, todo: Sequence[Todo], bar: Bar | None
) -> None:
    """Do the work on the batches that lack files; raises the errors of ``run_batches``.

    ``bar`` counts the batches, unless it is None.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
        warnings.filterwarnings(
            "ignore", ".*GPU available but not used.*"
        )  # it is a setting of the user
        done = 0 if bar is None else bar.done
        _test(_trainer(spec, bar), _Runner(work, lm, todo))
    if bar is not None:  # other processes do not reach this bar
        bar.advance(done + len(todo) - bar.done)


def check_trainer(spec: TrainerSpec) -> None:
    """Raise ``InputError`` if this machine lacks the devices of the spec."""
    _trainer(spec, None)


def _trainer(spec: TrainerSpec, bar: Bar | None) -> L.Trainer:
    """Return a Trainer that writes no files of its own and counts its batches on ``bar``."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.pytorch.trainer.connectors.signal_connector",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return L.Trainer(
            accelerator=spec.accelerator,
            devices=spec.devices,
            strategy=spec.strategy,
            precision=spec.precision,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            callbacks=[] if bar is None else [_Counting(bar)],
            plugins=[LightningEnvironment()],  # Lightning's handler for Slurm would requeue the job
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise InputError(
            f"trainer.accelerator={spec.accelerator}, trainer.devices={spec.devices}: {error} "
            "trainer=auto uses a GPU if PyTorch finds one"
        ) from error


def _test(trainer: L.Trainer, runner: _Runner) -> None:
    others = active_children()
    try:
        trainer.test(runner, verbose=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"the language model and the SAEs do not fit into the device's memory: {LESS} "
            "trainer=large spreads the language model"
        ) from error
    except ProcessRaisedException as error:  # in one of several processes
        kind, reason = _last_error(str(error))
        if kind in map(_full_name, _with_subclasses(InputError)):
            raise InputError(reason) from error
        if kind.endswith("MemoryError") or is_out_of_memory(RuntimeError(reason)):
            raise InputError(f"a device's memory is too small: {LESS} {reason}") from error
        raise
    except SystemExit as end:  # Lightning's answer to a KeyboardInterrupt
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        for process in active_children():  # after an interruption, they are still running
            if process not in others:
                process.kill()
        runner.release()


def _last_error(text: str) -> tuple[str, str]:
    """Return the full name and the message of the error that a printed traceback ends in."""
    lines = text.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    last = " ".join(line.strip() for line in dropwhile(_is_frame, lines) if line.strip())
    kind, _, reason = last.partition(": ")
    return kind, reason


def _is_frame(line: str) -> bool:
    return not line or line[0] == " "


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for inner in subclasses:
        yield from _with_subclasses(inner)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


LESS = "lower sae_memory, set model.dtype=bfloat16, or trainer.precision=bf16-mixed;"
"""Advice that lowers the memory needed on a device for any size of batch."""


class _Runner(L.LightningModule):
    """Calls the work on each batch and writes the files of each recorder."""

    def __init__(self, work: BatchWork, lm: LanguageModel, todo: Sequence[Todo]) -> None:
        super().__init__()
        self._lm = [lm]  # in a list, it is not a submodule
        if not lm.is_dispatched:
            self.lm = lm  # a submodule, which Lightning moves to the device
        self.work, self.todo = work, todo
        self.fits = max(len(batch.tokens.ids) for batch in todo)

    def release(self) -> None:
        """Release the SAEs. Lightning's objects keep the runner until garbage collection."""
        del self.work

    def test_dataloader(self) -> DataLoader[Any]:
        sampler = None
        if self.trainer.world_size > 1:  # Lightning's own sampler would repeat batches
            sampler = UnrepeatedDistributedSampler(
                self.todo,
                num_replicas=self.trainer.world_size,
                rank=self.trainer.global_rank,
                shuffle=False,
            )
        return DataLoader(self.todo, batch_size=None, sampler=sampler)  # type: ignore[arg-type]

    def on_test_start(self) -> None:
        self.work = self.work.to(self.device)

    def test_step(self, batch: Todo, batch_idx: int) -> None:
        paths = {name: Path(path) for name, path in batch.paths.items()}
        with claim(batch.lock, batch.wait) as ours:
            lacking = [name for name, path in paths.items() if not is_kept(path)]
            if ours and lacking:  # another run may do the same work
                for name, kept in self._record(batch.tokens, lacking).items():
                    write_sums(paths[name], kept)

    def _record(self, tokens: TokenBatch, recorders: Sequence[str]) -> dict[str, Kept]:
        """Do the work on some texts, in pieces that fit into memory."""
        n = len(tokens.ids)
        if n <= self.fits:
            try:
                return self.work(self._lm[0], tokens, recorders)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                length = tokens.ids.shape[1]
                if n == 1:
                    raise InputError(
                        f"one text of {length} tokens does not fit into the device's memory "
                        f"together with the language model and the SAEs: lower dataset.max_tokens; "
                        f"or {LESS} trainer=large spreads the language model"
                    ) from error
                self.fits = (n + 1) // 2
                log.warning(
                    "%d texts of %d tokens do not fit into memory: continuing with %d at a time",
                    n,
                    length,
                    self.fits,
                )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (n + 1) // 2
        first, second = (
            self._record(_texts(tokens, *ends), recorders) for ends in ((0, half), (half, n))
        )
        return {name: self.work.join(name, first[name], second[name], half) for name in recorders}


def _texts(tokens: TokenBatch, start: int, end: int) -> TokenBatch:
    """Return a range of a batch's texts, with the batch's padding."""
    parts = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return TokenBatch(**{name: part[start:end] for name, part in parts.items()})


class _Counting(Callback):
    """Counts finished batches on the run's bar; the first of several processes counts for all."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Count a batch of each process."""
        if trainer.is_global_zero:
            self.bar.advance(trainer.world_size)

"""Run work on texts batch by batch; a killed run continues with the next batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from saematch.core.claims import is_sharing, lock_of
from saematch.core.memory import keep_freed_memory
from saematch.core.progress import Bar
from saematch.core.store import missing
from saematch.lm.hooks import LanguageModel
from saematch.texts.batch_work import BatchWork, Todo
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec


def run_batches(
    trainer: TrainerSpec,
    work: BatchWork,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    bar: Bar,
    paths: Mapping[str, Sequence[Path]],
) -> None:
    """Do the work on every batch; ``paths`` has one file for each recorder and batch.

    ``bar`` counts the batches. The work is called once for a batch, with all recorders whose file
    is missing or damaged. If a batch does not fit into the device's memory, it is split into
    halves, and later batches are split into pieces of the size that fits. Raises
    ``InputError`` if a single text does not fit, or if the work and the language model do not fit.
    Processes that share their work (``saematch.core.claims``) each do some of the batches.
    """
    todo = _todo(batches, paths)
    bar.skip(len(batches) - len(todo))
    if not todo:
        return
    from saematch.texts.lightning_runner import run_with_lightning  # takes seconds to import

    if trainer.device_type == "cpu":
        keep_freed_memory()
    cpu = torch.device("cpu")
    run_with_lightning(trainer.at_most(len(todo)), work.to(cpu), lm, todo, bar)
    if is_sharing():  # wait for the batches of other processes
        others = [batch._replace(wait=True) for batch in _todo(batches, paths)]
        if others:
            run_with_lightning(trainer.at_most(len(others)), work.to(cpu), lm, others, None)
    lost = [path for files in paths.values() for path in files if not path.exists()]
    if lost:
        raise RuntimeError(f"the runner did not write {lost[0]}")


def check_devices(trainer: TrainerSpec) -> None:
    """Raise ``InputError`` if this machine lacks the devices that the user chose."""
    if trainer.accelerator in ("auto", "cpu") and trainer.devices == 1:
        return  # they exist
    from saematch.texts.lightning_runner import check_trainer

    check_trainer(trainer)


def _todo(batches: Sequence[TokenBatch], paths: Mapping[str, Sequence[Path]]) -> list[Todo]:
    """Return the batches with missing or damaged files."""
    lacking: dict[int, dict[str, str]] = {}
    for recorder, files in paths.items():
        for number in missing(files):
            lacking.setdefault(number, {})[recorder] = str(files[number])
    first = next(iter(paths.values()))
    return [
        Todo(batches[number], lacking[number], lock_of(first[number])) for number in sorted(lacking)
    ]

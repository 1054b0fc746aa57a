"""Work on texts, batch by batch, which continues after a kill."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from saematch.core.memory import keep_freed_memory
from saematch.core.store import missing
from saematch.lm.hooks import LanguageModel
from saematch.texts.batch_work import BatchWork, Todo
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec

log = logging.getLogger(__name__)


def run_batches(
    trainer: TrainerSpec,
    work: BatchWork,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    label: str,
    paths: Mapping[str, Sequence[Path]],
) -> None:
    """Do the work on every batch; ``paths`` has the files of each recorder, one for each batch.

    One forward of a batch serves all recorders that lack a file for it; a file that is there and
    whole is not made again. A batch that does not fit into the device's memory is done in halves,
    and later batches in pieces of the size that fitted. Raises ``InputError`` if a single text does
    not fit, or the work and the language model do not.
    """
    lacking: dict[int, dict[str, str]] = {}
    for recorder, files in paths.items():
        for number in missing(files):
            lacking.setdefault(number, {})[recorder] = str(files[number])
    todo = [Todo(batches[number], lacking[number]) for number in sorted(lacking)]
    if len(todo) < len(batches):
        n_done = len(batches) - len(todo)
        log.info("%s: %d of %d batches were done before", label, n_done, len(batches))
    if todo:
        from saematch.texts.lightning_runner import run_with_lightning  # takes seconds to import

        if trainer.device_type == "cpu":
            keep_freed_memory()
        run_with_lightning(
            trainer.at_most(len(todo)), work.to(torch.device("cpu")), lm, todo, label
        )
        lost = [path for files in paths.values() for path in files if not path.exists()]
        if lost:
            raise RuntimeError(f"{lost[0]} was not written by the runner")

"""Work on texts, batch by batch, which continues after a kill."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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

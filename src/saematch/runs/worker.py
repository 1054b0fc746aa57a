"""Do a part of a run's work in one of several processes; the run then finds it in the cache."""

from __future__ import annotations

from pathlib import Path

import torch

from saematch.core.claims import sharing
from saematch.core.errors import InputError
from saematch.core.results import Results
from saematch.runs import stages
from saematch.runs.context import Context
from saematch.runs.experiment import Experiment


def check_shareable(experiment: Experiment) -> None:
    """Raise ``InputError`` for a run whose work processes cannot share."""
    if experiment.trains:
        raise InputError(
            f"task={experiment.task}: only the work of task=match can be spread over processes"
        )


def work(experiment: Experiment, folder: Path, locks: Path) -> None:
    """Do matches and batches of texts that no other process does, and wait for those of others.

    ``folder`` is the run's folder, and all processes use the same folder ``locks``. A match or a
    batch of texts is a unit of work (``saematch.core.claims``). Afterwards every match and every
    recording of the run is kept. Judges are connected to check them, but not asked. Raises
    ``InputError`` for bad input.
    """
    check_shareable(experiment)
    context = Context(experiment, folder, Results(experiment.name, {}, {}))
    torch.manual_seed(experiment.seed)
    try:
        with sharing(locks):
            stages.load(context)
            stages.find_matches(context)
            stages.share_passes(context)
    finally:
        for judge in filter(None, context.judges):
            judge.close()

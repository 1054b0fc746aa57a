"""Do one run: from an experiment to ``results.json``, figures and a mirror of both."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from saematch.core.errors import described, stage
from saematch.core.results import Results
from saematch.evaluate.means import headline_metrics
from saematch.explorer.page import write_page
from saematch.judge.means import judge_metrics
from saematch.report.figures import draw_figures, run_label
from saematch.report.summary import agreement_metrics, mean_metrics, optimal_to
from saematch.runs import stages
from saematch.runs.context import Context
from saematch.runs.experiment import Experiment
from saematch.runs.interruption import interruption, interruption_text
from saematch.runs.provenance import made_with, sources
from saematch.runs.resuming import settings_of
from saematch.runs.run_folders import Claim, claimed
from saematch.runs.tracking import Outcome

log = logging.getLogger(__name__)


def run(experiment: Experiment, config: dict[str, Any], folder: Path) -> Results:
    """Do the run in ``folder``, or continue it if the folder contains a part of the same run.

    The run claims the folder before it loads anything. Raises ``InputError`` and ``OSError`` for
    bad input. An error while SAEs, model and texts are loaded leaves the folder unchanged. After a
    later error, ``results.json`` has the status ``failed`` and the error. After a signal or
    ``KeyboardInterrupt``, which is raised again, it has the status ``interrupted``; the same call
    continues the run.
    """
    with claimed(folder, settings_of(config)) as claim:
        return _run(experiment, config, folder, claim)


def _run(experiment: Experiment, config: dict[str, Any], folder: Path, claim: Claim) -> Results:
    started = time.monotonic()
    path = folder / "results.json"
    finished = path.exists() and Results.load(path).status == "finished"
    results = Results(experiment.name, config, made_with(experiment))
    context = Context(experiment, folder, results)
    torch.manual_seed(experiment.seed)
    try:
        stages.load(context)
        claim.kept = True
        if not finished:
            results.save(path)
        context.tracker = experiment.logger.start(experiment.name, folder, config)
        results.provenance |= sources(context)
        for run_stage in stages.STAGES[experiment.task]:
            run_stage(context)
        summaries = (mean_metrics, headline_metrics, judge_metrics, agreement_metrics, optimal_to)
        results.metrics = {
            name: value for summary in summaries for name, value in summary(results.tables).items()
        }
        with stage("report"):
            label = run_label(results, folder.name)
            figures = draw_figures(results.tables, experiment.figures, folder / "figures", label)
        results.status = "finished"
        results.provenance["seconds"] = round(time.monotonic() - started, 1)
        results.save(path)
        if experiment.show and not experiment.trains:
            with stage("write page"):
                write_page(folder)
    except BaseException as error:
        cause = interruption(error)
        if not finished and (claim.kept or cause is not None):
            results.status = "failed" if cause is None else "interrupted"
            results.error = described(error) if cause is None else interruption_text(cause)
            try:
                results.save(path)
            except (
                OSError
            ) as unsaved:  # for example, the disk is full, which also made the run fail
                log.warning("%s", unsaved)
        if context.tracker is not None:
            context.tracker.fail()
        if cause is not None:
            raise cause from None  # ``error`` may come from a library that it interrupted
        raise
    finally:
        for judge in filter(None, context.judges):
            judge.close()
    context.tracker.finish(Outcome(results, figures, folder / "matches"))
    return results


def record_failure(folder: Path, name: str, overrides: list[str], error: str) -> None:
    """Write a ``results.json`` for a run that could not start or that ended without a message.

    The status of a run that has finished or failed does not change.
    """
    path = folder / "results.json"
    if path.exists():
        results = Results.load(path)
    else:
        results = Results(name, {"overrides": overrides}, made_with(None))
    if results.status == "running":
        results.status = "failed"
        results.error = error
        results.save(path)

"""``saematch spread``: one run whose work several processes or machines do together.

Each worker is a job of a Hydra launcher that does matches and batches of texts which no other
worker does (``saematch.runs.worker``). They keep them in the run's cache. The run itself is one
more job, on the same kind of machine, and finds all of them there.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from saematch.app.configuration import (
    add_config_dir,
    build,
    config_dir_of,
    is_hydra_setting,
    quoted,
    search_path,
    whole_number,
)
from saematch.app.launching import check_launcher, do_part, do_whole, launch
from saematch.core.errors import InputError
from saematch.runs.interruption import Interrupted, record_interruption
from saematch.runs.resuming import refuse_other_run, settings_of
from saematch.runs.run_folders import is_held, remove_unused, run_folder

log = logging.getLogger(__name__)

STARTS = 2
"""Number of times that workers are started: a killed process also ends the others of joblib."""
WORKERS = "workers"
"""Folder of the workers' logs and locks in the run's folder."""


def main(arguments: Sequence[str]) -> None:
    """Do the command. Bad input ends in one line before any work, and leaves no folder."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    config_dir = config_dir_of(options.config_dir)
    settings = [setting for setting in options.settings if not is_hydra_setting(setting)]
    launcher = [setting for setting in options.settings if is_hydra_setting(setting)]
    if not any(setting.startswith("hydra/launcher=") for setting in launcher):
        launcher.append("hydra/launcher=joblib")
    folder, run_id = _checked(settings, config_dir)
    launcher += search_path(config_dir)
    check_launcher(launcher)
    sys.argv[1:] = ["spread", *arguments, run_id]  # an interrupted command continues with this
    job = [*settings, run_id]
    _do_work(folder, [job] * options.n, [*launcher, *_n_processes(launcher, options.n)])
    _do_run(folder, job, [*launcher, *_n_processes(launcher, 1)])


def _checked(settings: list[str], config_dir: Path | None) -> tuple[Path, str]:
    """Return the run's folder and the setting of its id; ``InputError`` for bad input."""
    from saematch.runs.worker import check_shareable

    experiment, config = build(settings, config_dir)
    check_shareable(experiment)
    folder = run_folder(config["name"], config["run_id"])
    refuse_other_run(folder, settings_of(config))
    if folder.exists() and is_held(folder):
        raise InputError(f"{folder} is being written by another process: choose another run_id")
    return folder, f"run_id={quoted(str(config['run_id']))}"


def _n_processes(launcher: Sequence[str], n: int) -> list[str]:
    """Return joblib's setting of the number of processes, which share the cores equally."""
    return [f"hydra.launcher.n_jobs={n}"] if "hydra/launcher=joblib" in launcher else []


def _do_work(folder: Path, jobs: Sequence[Sequence[str]], launcher: Sequence[str]) -> None:
    """Do the work of the run in several jobs; ``InputError`` if all of them refuse the input.

    Work that killed or failed jobs leave is done by the others, or by the run itself.
    """
    workers = folder / WORKERS
    quiet = "+hydra.job_logging.handlers.console.level=WARNING"
    settings = [*launcher, f"hydra.sweep.dir={quoted(str(workers))}", quiet]
    mistakes: list[str] = []
    for start in range(STARTS):
        try:
            mistakes = launch(do_part, jobs, settings)
        except RuntimeError as error:  # a process was killed
            reason = " ".join(str(error).split())
            log.warning("the launcher gave up (%s)%s", reason,
                        ": starting the workers again" if start + 1 < STARTS else "")  # fmt: skip
            continue
        break
    if len(mistakes) == len(jobs):  # otherwise the logs of the workers stay
        shutil.rmtree(workers, ignore_errors=True)
        remove_unused(folder)
        if all(mistakes):
            raise InputError(mistakes[0])
    for mistake in dict.fromkeys(filter(None, mistakes)):
        log.warning("a worker stopped: %s", mistake)


def _do_run(folder: Path, job: list[str], launcher: Sequence[str]) -> None:
    """Do the run itself as one job, and print its results."""
    from saematch.core.results import Results
    from saematch.report.terminal import print_results

    place = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=."]
    try:
        mistakes = launch(do_whole, [job], [*launcher, *place])
    except Interrupted as cause:  # a launcher kills the processes of its jobs
        if (folder / "results.json").exists() and not is_held(folder):
            record_interruption(folder, folder.parent.name, job, cause)
        raise
    if not mistakes:
        sys.exit(f"saematch: {folder} failed; the same command with {job[-1]} continues it")
    if mistakes[0]:
        raise InputError(mistakes[0])
    print_results(Results.load(folder / "results.json"), folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch spread",
        description="Do one run on several processes or machines. Workers share its matches and "
        "batches of texts. Then the run collects their results; its tables equal those of a run "
        "in one process.",
        epilog="hydra/launcher=joblib (the default), ray or submitit chooses where workers run. "
        "All workers need the folder of the run and its cache (see docs/scaling.md).",
    )
    parser.add_argument(
        "settings", nargs="*", help="settings of the run, such as +experiment=verify"
    )
    parser.add_argument(
        "-n", type=partial(whole_number, 1), default=2, metavar="N",
        help="number of workers (default: 2)",
    )  # fmt: skip
    add_config_dir(parser)
    return parser

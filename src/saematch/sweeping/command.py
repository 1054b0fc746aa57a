"""``saematch sweep``: do the jobs of a W&B sweep file here, without W&B's servers."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saematch.cli import spread
from saematch.comparing.command import compare
from saematch.sweeping.file import SweepFile, read_sweep
from saematch.sweeping.jobs import Sweep

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run the command; exits with 1 if a job failed, after all others were done."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    launcher = [setting for setting in options.settings if _is_hydras(setting)]
    own = [setting for setting in options.settings if not _is_hydras(setting)]
    file = changed(read_sweep(options.file), own)
    sweep = Sweep(file, options.folder or Path("outputs/sweeps") / file.study, options.seed)
    n_jobs = _plan(sweep, options)
    if options.dry_run:
        for job in sweep.jobs:
            sys.stdout.write(f"python -m saematch {shlex.join(job.settings)}\n")
        return
    missing = sweep.missing()
    log.info("%s: %d jobs, %d of them finished", sweep.folder, n_jobs,
             len(sweep.jobs) - len(missing))  # fmt: skip
    if missing:
        sweep.do(missing, launcher)
    while len(sweep.jobs) < n_jobs:  # of a Bayesian sweep, whose points follow from results
        job = sweep.add(sweep.next_point())
        sweep.save()
        sweep.do([job], launcher)
    failed = sweep.failures()
    if len(failed) < len(sweep.jobs):
        from saematch.comparing.terminal import print_comparison

        print_comparison(compare([sweep.folder]), [])
    if failed:
        sys.exit(
            f"saematch: {len(failed)} of {n_jobs} jobs failed ("
            f"{', '.join(job.folder for job in failed)}); the same command with --resume does "
            "them again"
        )
    sweep.reached(sweep.jobs[0])


def _plan(sweep: Sweep, options: argparse.Namespace) -> int:
    """Plan the jobs, or take over those that are there; return how many there are to be."""
    file, there = sweep.file, (sweep.folder / "sweep.json").exists()
    if there and not (options.resume or options.dry_run):
        raise ValueError(
            f"{sweep.folder} holds a sweep already: --resume goes on with it, --folder takes "
            "another place"
        )
    if there and options.resume:
        sweep.resume()
    if file.method == "grid":
        points = file.grid()
        n_jobs = min(options.count or len(points), len(points))
    else:
        n_jobs = options.count or file.run_cap or 0
        if n_jobs < 1:
            raise ValueError(f"method: {file.method} has no end of its own: set --count or run_cap")
    while len(sweep.jobs) < n_jobs:
        if file.method == "bayes" and (sweep.jobs or not options.dry_run):
            break
        at = len(sweep.jobs)
        sweep.add(points[at] if file.method == "grid" else sweep.next_point())
    if not options.dry_run:
        sweep.save()
    return max(n_jobs, len(sweep.jobs))


def changed(file: SweepFile, settings: Sequence[str]) -> SweepFile:
    """Return the sweep with settings of the command line in the place of its own.

    Several values, as ``matching=both,decoder``, and those of a parameter are swept over.
    """
    parameters: dict[str, Any] = dict(file.parameters)
    fixed = list(file.settings)
    for setting in settings:
        key, each = spread(setting)
        if key in parameters or len(each) > 1:
            parameters[key] = {"values": [one.partition("=")[2] for one in each]}
        fixed = [one for one in fixed if _key(one) != key.lstrip("+")]
        if key not in parameters:
            fixed += each
    return replace(file, parameters=parameters, settings=tuple(fixed))


def _key(setting: str) -> str:
    return setting.partition("=")[0].lstrip("+")


def _is_hydras(setting: str) -> bool:
    return setting.lstrip("+~").startswith(("hydra.", "hydra/"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch sweep",
        description="Do the jobs of a W&B sweep file on this machine or cluster, without W&B's "
        "servers: the same commands that 'wandb agent' would start. Then compare them: tables and "
        "figures go to <folder>/comparison.",
        epilog="hydra/launcher=joblib, ray or submitit does several jobs at a time, here or on a "
        "cluster; docs/tracking.md tells more.",
    )
    parser.add_argument("file", type=Path, help="a sweep file, as sweeps/sparsity.yaml")
    parser.add_argument(
        "settings", nargs="*",
        help="settings of every job, as dataset.n_texts=20; several values, as "
        "matching=both,decoder, are swept over in the place of the file's own",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="where jobs and comparison go (outputs/sweeps/<study>)"
    )
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with the sweep in the folder, if there is one: what is finished is not done "
        "again",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=int, metavar="N", help="at most N jobs; random and bayes need it or run_cap"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random and bayes (0)")
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs' commands")
    return parser

"""``saematch sweep``: do the jobs of a W&B sweep file here, without W&B's servers."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from saematch.app.compare import compare
from saematch.app.configuration import add_config_dir, config_dir_of, search_path, spread
from saematch.app.launching import check_launcher
from saematch.app.sweep.file import SweepFile, read_sweep, studies
from saematch.app.sweep.jobs import Sweep
from saematch.core.errors import InputError
from saematch.core.files import check_path, make_folder

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run the command; exits with 1 if a job failed, after all others were done."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    launcher = [setting for setting in options.settings if _is_hydras(setting)]
    own = [setting for setting in options.settings if not _is_hydras(setting)]
    file = changed(read_sweep(options.file), own)
    config_dir = config_dir_of(options.config_dir) or file.config_dir
    file = replace(file, config_dir=config_dir)
    sweep = Sweep(file, options.folder or Path("outputs/sweeps") / file.study, options.seed)
    if options.dry_run:
        _plan(sweep, options)
        presets = [] if config_dir is None else ["--config-dir", str(config_dir)]
        for job in sweep.jobs:
            words = ["python", "-m", "saematch", *presets, *job.settings]
            sys.stdout.write(f"{shlex.join(words)}\n")
        return
    check_launcher([*launcher, *search_path(config_dir)])
    begun = _is_begun(sweep.folder)
    if begun and not options.resume:
        raise InputError(
            f"{sweep.folder} holds a sweep already: --resume goes on with it, --folder takes "
            "another place"
        )
    lock = FileLock(sweep.folder / ".lock", timeout=0)
    created = not sweep.folder.exists()
    make_folder(sweep.folder)
    try:
        with lock:
            try:
                _run(sweep, options, launcher, begun)
            finally:
                if created and not (sweep.folder / "sweep.json").exists():  # it was refused
                    (sweep.folder / ".lock").unlink()
                    sweep.folder.rmdir()
    except Timeout:
        raise InputError(f"another process is at the sweep in {sweep.folder}") from None


def _is_begun(folder: Path) -> bool:
    """Whether the folder holds a sweep; ``InputError`` if it holds anything else."""
    check_path("--folder", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --folder")
    there = [path.name for path in folder.iterdir()] if folder.exists() else []
    if "sweep.json" in there:
        return True
    others = [name for name in there if name != ".lock"]
    if others:
        raise InputError(f"{folder} holds {others[0]} and no sweep: choose another --folder")
    return False


def _run(sweep: Sweep, options: argparse.Namespace, launcher: Sequence[str], begun: bool) -> None:
    """Do what is missing, and compare."""
    if begun:
        sweep.resume()
    n_jobs = _plan(sweep, options)
    missing = sweep.missing()
    sweep.save()
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
        from saematch.compare.terminal import print_comparison

        print_comparison(compare([sweep.folder]), [])
    if failed:
        sys.exit(
            f"saematch: {len(failed)} of {n_jobs} jobs failed or never began ("
            f"{', '.join(job.folder for job in failed)}); the same command with --resume does "
            "them again"
        )
    sweep.reached(sweep.jobs[0])


def _plan(sweep: Sweep, options: argparse.Namespace) -> int:
    """Plan jobs beside those that are there; return how many there are to be."""
    file = sweep.file
    if file.method == "grid":
        points = file.grid()
        n_jobs = min(options.count or len(points), len(points))
    else:
        n_jobs = options.count or file.run_cap or 0
        if n_jobs < 1:
            raise InputError(f"method: {file.method} has no end of its own: set --count or run_cap")
    while len(sweep.jobs) < n_jobs:
        if file.method == "bayes" and (sweep.jobs or not options.dry_run):
            break
        at = len(sweep.jobs)
        sweep.add(points[at] if file.method == "grid" else sweep.next_point())
    return max(n_jobs, len(sweep.jobs))


def changed(file: SweepFile, settings: Sequence[str]) -> SweepFile:
    """Return the sweep with settings of the command line in the place of its own.

    Several values, as ``objective=both,decoder``, and those of a parameter are swept over.
    """
    parameters: dict[str, Any] = dict(file.parameters)
    fixed = list(file.settings)
    for setting in settings:
        given, each = spread(setting)
        key = _key(given)
        key = key if key in parameters else given
        if key in parameters or len(each) > 1:
            parameters[key] = {"values": [one.partition("=")[2] for one in each]}
        fixed = [one for one in fixed if _key(one) != _key(given)]
        if key not in parameters:
            fixed += each
    return replace(file, parameters=parameters, settings=tuple(fixed))


def _key(setting: str) -> str:
    return setting.partition("=")[0].lstrip("+")


def _whole(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
    return int(text)


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
    parser.add_argument("file", type=Path, help=f"a sweep file, or a name: {studies()}")
    parser.add_argument(
        "settings", nargs="*",
        help="settings of every job, as dataset.n_texts=20; several values, as "
        "objective=both,decoder, are swept over in the place of the file's own",
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
        "--count",
        type=partial(_whole, 1),
        metavar="N",
        help="plan at most N jobs, those that are there included; random and bayes need it or "
        "run_cap",
    )
    parser.add_argument(
        "--seed", type=partial(_whole, 0), default=0, help="of random and bayes (0)"
    )
    add_config_dir(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs' commands")
    return parser

"""``saematch sweep``: do the jobs of a W&B sweep file without W&B's servers."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from saematch.app.configuration import (
    add_config_dir,
    config_dir_of,
    is_hydra_setting,
    search_path,
    spread,
    whole_number,
)
from saematch.app.launching import check_launcher
from saematch.app.sweep.file import SweepFile, read_sweep, studies
from saematch.core.errors import InputError
from saematch.core.files import check_path, make_folder
from saematch.core.progress import counted

if TYPE_CHECKING:
    from saematch.app.sweep.jobs import Sweep

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run the command. After all jobs, exit with 1 if one of them failed."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    launcher = [setting for setting in options.settings if is_hydra_setting(setting)]
    settings = [setting for setting in options.settings if not is_hydra_setting(setting)]
    file = changed(read_sweep(options.file), settings)
    config_dir = config_dir_of(options.config_dir) or file.config_dir
    file = replace(file, config_dir=config_dir)
    from saematch.app.sweep.jobs import Sweep  # imports torch, unlike the checks above

    sweep = Sweep(file, options.folder or Path("outputs/sweeps") / file.study, options.seed)
    if options.dry_run:
        _plan(sweep, options)
        presets = [] if config_dir is None else ["--config-dir", str(config_dir)]
        for job in sweep.jobs:
            words = ["python", "-m", "saematch", *presets, *job.settings]
            sys.stdout.write(f"{shlex.join(words)}\n")
        return
    check_launcher([*launcher, *search_path(config_dir)])
    begun = _contains_sweep(sweep.folder)
    if begun and not options.resume:
        raise InputError(
            f"{sweep.folder} already contains a sweep: continue it with --resume, or choose "
            "another --folder"
        )
    lock = FileLock(sweep.folder / ".lock", timeout=0)
    created = not sweep.folder.exists()
    make_folder(sweep.folder)
    try:
        with lock:
            try:
                _run(sweep, options, launcher, begun)
            finally:
                if created and not (sweep.folder / "sweep.json").exists():  # the sweep was refused
                    (sweep.folder / ".lock").unlink()
                    sweep.folder.rmdir()
    except Timeout:
        raise InputError(f"another process is running the sweep in {sweep.folder}") from None


def _contains_sweep(folder: Path) -> bool:
    """Return whether the folder contains a sweep. ``InputError`` if it contains anything else."""
    check_path("--folder", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --folder")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if "sweep.json" in names:
        return True
    others = [name for name in names if name != ".lock"]
    if others:
        raise InputError(f"{folder} contains {others[0]} and no sweep: choose another --folder")
    return False


def _run(sweep: Sweep, options: argparse.Namespace, launcher: Sequence[str], begun: bool) -> None:
    """Do the missing jobs, then compare all jobs."""
    if begun:
        sweep.resume()
    n_jobs = _plan(sweep, options)
    missing = sweep.missing()
    sweep.save()
    log.info("%s: %s, %d of them finished", sweep.folder, counted(n_jobs, "job"),
             len(sweep.jobs) - len(missing))  # fmt: skip
    if missing:
        sweep.do(missing, launcher)
    while len(sweep.jobs) < n_jobs:  # Bayesian: each point depends on earlier results
        job = sweep.add(sweep.next_point())
        sweep.save()
        sweep.do([job], launcher)
    failed = sweep.failures()
    if len(failed) < len(sweep.jobs):
        from saematch.app.compare import compare
        from saematch.compare.terminal import print_comparison

        print_comparison(compare([sweep.folder]), [])
    if failed:
        sys.exit(
            f"saematch: {len(failed)} of {counted(n_jobs, 'job')} failed or never began: "
            f"{', '.join(str(sweep.folder / job.folder) for job in failed)}; repeat with the same "
            "command and --resume"
        )
    sweep.reached(sweep.jobs[0])


def _plan(sweep: Sweep, options: argparse.Namespace) -> int:
    """Plan the jobs that can be planned now, and return the number of jobs of the sweep."""
    file = sweep.file
    if file.method == "grid":
        points = file.grid()
        n_jobs = min(options.count or len(points), len(points))
    else:
        n_jobs = options.count or file.run_cap or 0
        if n_jobs < 1:
            raise InputError(f"method: {file.method} never ends by itself: set --count or run_cap")
    while len(sweep.jobs) < n_jobs:
        if file.method == "bayes" and (sweep.jobs or not options.dry_run):
            break
        at = len(sweep.jobs)
        sweep.add(points[at] if file.method == "grid" else sweep.next_point())
    return max(n_jobs, len(sweep.jobs))


def changed(file: SweepFile, settings: Sequence[str]) -> SweepFile:
    """Return the sweep with its own settings replaced by those of the command line.

    A setting with several values, as ``objective=both,decoder``, becomes a parameter. A setting of
    one of the file's parameters replaces its values.
    """
    parameters: dict[str, Any] = dict(file.parameters)
    fixed = list(file.settings)
    for setting in settings:
        full_key, points = spread(setting)
        key = _key(full_key)
        fixed = [other for other in fixed if _key(other) != key]
        key = key if key in parameters else full_key
        if key in parameters or len(points) > 1:
            parameters[key] = {"values": [point.partition("=")[2] for point in points]}
        else:
            fixed += points
    return replace(file, parameters=parameters, settings=tuple(fixed))


def _key(setting: str) -> str:
    return setting.partition("=")[0].lstrip("+")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch sweep",
        description="Do the jobs of a W&B sweep file on this machine or cluster, without W&B's "
        "servers: the same commands that 'wandb agent' would start. Then compare them: tables and "
        "figures are written to <folder>/comparison.",
        epilog="hydra/launcher=joblib, ray or submitit does several jobs at a time, here or on a "
        "cluster (see docs/sweeps.md).",
    )
    parser.add_argument(
        "file", type=Path, help=f"a sweep file, or the name of a study: {studies()}"
    )
    parser.add_argument(
        "settings", nargs="*",
        help="settings of every job, such as dataset.n_texts=20; a setting with several values, "
        "such as objective=both,decoder, is swept over and replaces the file's",
    )  # fmt: skip
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder of the jobs and the comparison (default: outputs/sweeps/<study>)",
    )
    parser.add_argument(
        "--resume", action="store_true",
        help="continue the sweep in the folder, if it contains one; finished jobs are not repeated",
    )  # fmt: skip
    parser.add_argument(
        "--count",
        type=partial(whole_number, 1),
        metavar="N",
        help="plan at most N jobs in total; random and bayes need it unless the file has run_cap",
    )
    parser.add_argument(
        "--seed",
        type=partial(whole_number, 0),
        default=0,
        help="seed of random and bayes (default: 0)",
    )
    add_config_dir(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs' commands")
    return parser

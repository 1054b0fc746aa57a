"""Runs in folders: finished, failed, unfinished, planned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.files import check_path, parse_json
from saematch.core.results import Results, SchemaError
from saematch.core.safe_text import visible
from saematch.core.tables import Tables, rows_of
from saematch.report.frames import table

MEANS = (
    "suites", "arm", "dataset", "strategy", "quantile", "metric", "value", "low", "high", "n_pairs",
)  # fmt: skip
"""Columns of the table ``means`` of a run."""

NOT_SEARCHED = ("wandb", "cache", "figures", "matches", "comparison")
"""Folders that are not searched: they have no runs and may have very many files."""

Value = str | int | float | None


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run that was read from its folder."""

    folder: Path
    state: str
    """``finished``, ``failed``, ``unfinished`` (running or killed), ``missing`` (planned and not
    started), ``outdated`` (written by another version of saematch) or ``damaged``."""
    reason: str = ""
    """Reason why the run is not compared; empty if it is compared."""
    name: str = ""
    """Path below the folder that all runs share."""
    settings: tuple[str, ...] = ()
    """Overrides as the user gave them."""
    results: Results | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    """Value of each swept parameter; None if the run has no value or the value is unknown."""

    @property
    def saved_at(self) -> float:
        """Time when the results were saved, in seconds since the epoch."""
        return (self.folder / "results.json").stat().st_mtime


class Objective(NamedTuple):
    """The metric that a sweep optimises."""

    metric: str
    """Name among the metrics of a run's results."""
    goal: str
    """``minimize`` or ``maximize``."""


class RunFolders(NamedTuple):
    """Runs and sweep plans of folders."""

    runs: tuple[RunFolder, ...]
    objectives: tuple[Objective, ...]
    notes: tuple[str, ...]


def find_runs(folders: Sequence[Path]) -> RunFolders:
    """Read every run in or below the folders, and the plans of sweeps.

    Raises ``InputError`` for a path that is not a folder, and if there is no run.
    """
    started: dict[Path, Path] = {}
    planned: dict[Path, tuple[Path, tuple[str, ...]]] = {}
    objectives, notes = [], []
    for top in folders:
        check_path("folder", top)
        if not top.is_dir():
            raise InputError(
                f"{top} is not a folder: name folders of runs or sweeps, or a folder above them"
            )
        for folder, is_sweep in _walk(top):
            if not is_sweep:
                started[folder.resolve()] = folder
                continue
            try:
                jobs, objective = _plan(folder)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                notes.append(
                    f"{folder / 'sweep.json'} is damaged ({error}): its planned runs are not listed"
                )
                continue
            planned |= {job.resolve(): (job, settings) for job, settings in jobs.items()}
            objectives += objective
    runs = []
    for path in dict.fromkeys([*planned, *started]):
        folder, settings = planned[path] if path in planned else (started[path], ())
        missing = RunFolder(folder, "missing", "it was planned and never started")
        run = _read(folder) if path in started else missing
        runs.append(run if run.settings else replace(run, settings=settings))
    if not runs:
        raise InputError(
            f"no run in {', '.join(map(str, folders))}: the folder of a run contains results.json"
        )
    runs = sorted(runs, key=lambda run: _in_order(run.folder))
    return RunFolders(tuple(_named(runs)), tuple(dict.fromkeys(objectives)), tuple(notes))


def _walk(top: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each folder of a run or sweep, and whether it is a sweep's."""
    for folder, subfolders, files in os.walk(top):
        names = {*files, *subfolders}
        subfolders[:] = [name for name in subfolders if name not in NOT_SEARCHED]
        if "sweep.json" in names:
            yield Path(folder), True
        elif {"results.json", "run.json"} & names:
            subfolders.clear()
            yield Path(folder), False


def _plan(folder: Path) -> tuple[dict[Path, tuple[str, ...]], list[Objective]]:
    plan = parse_json((folder / "sweep.json").read_bytes())
    jobs = {
        folder / job["folder"]: tuple(visible(str(setting)) for setting in job["settings"])
        for job in plan["jobs"]
    }
    return jobs, [Objective(*visible([plan["metric"]["name"], plan["metric"]["goal"]]))]


def _read(folder: Path) -> RunFolder:
    path = folder / "results.json"
    if not path.exists():
        return RunFolder(folder, "unfinished", "it started, and nothing is saved yet")
    try:
        results = _visible(Results.load(path))
        settings = tuple(map(str, results.config.get("overrides", ())))
        means = table(results.tables, "means")
        if len(means) and set(MEANS) - set(means):
            raise InputError(f"{path} has a table of means without all of {', '.join(MEANS)}")
    except SchemaError as error:
        return RunFolder(folder, "outdated", str(error))
    except (ValueError, TypeError, AttributeError) as error:
        return RunFolder(folder, "damaged", str(error))
    run = RunFolder(folder, results.status, settings=settings, results=results)
    if results.status == "failed":
        return replace(run, reason=results.error or "it failed, and its error is not saved")
    if results.status == "interrupted":
        return replace(run, state="unfinished", reason=f"it was {results.error}")
    if results.status != "finished":
        return replace(run, state="unfinished", reason="it is still running, or was killed")
    if means.empty:
        reason = "it has no table of means: older code made it, or it matched no SAEs"
        return replace(run, reason=reason)
    return run


def _visible(results: Results) -> Results:
    """Return the results with escaped control characters in all texts."""
    tables = results.tables
    columns = [Column(**visible(vars(column))) for column in tables.columns.values()]
    safe = Tables.of(visible({name: rows_of(frame) for name, frame in tables.items()}), columns)
    rest = {name: visible(value) for name, value in vars(results).items() if name != "tables"}
    return Results(**rest, tables=safe)


def _in_order(folder: Path) -> tuple:
    """Return a sort key that puts folder 9 before folder 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)


def _named(runs: Sequence[RunFolder]) -> Iterator[RunFolder]:
    """Yield the runs with their names."""
    paths = [run.folder.resolve() for run in runs]
    shared = paths[0].parent if len(runs) == 1 else Path(os.path.commonpath(paths))
    for run, path in zip(runs, paths, strict=True):
        yield replace(run, name=visible(path.relative_to(shared).as_posix()))

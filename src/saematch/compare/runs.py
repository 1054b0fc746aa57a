"""Runs as they lie in folders: finished, failed, begun, planned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from saematch.core.errors import InputError
from saematch.core.files import check_path, parse_json
from saematch.core.results import Results, SchemaError
from saematch.core.safe_text import visible

MEANS = (
    "suites", "arm", "dataset", "strategy", "quantile", "metric", "value", "low", "high", "n_pairs",
)  # fmt: skip
"""Columns of the table ``means`` of a run."""

PASSED_OVER = ("wandb", "cache", "figures", "matches", "comparison")
"""Folders that hold no runs, and may hold very many files."""

Value = str | int | float | None


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run as far as its folder tells of it."""

    folder: Path
    state: str
    """``finished``, ``failed``, ``unfinished`` (running or killed), ``missing`` (planned, and never
    begun), ``outdated`` (another version of saematch wrote it) or ``damaged``."""
    reason: str = ""
    """Why it is not compared; empty if it is."""
    name: str = ""
    """The folder below the one that all the runs share."""
    settings: tuple[str, ...] = ()
    """As they were given."""
    results: Results | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    """Value of each swept parameter; None where there is none, or nobody knows."""

    @property
    def saved_at(self) -> float:
        """When its results were saved."""
        return (self.folder / "results.json").stat().st_mtime


class Objective(NamedTuple):
    """What a sweep was for."""

    metric: str
    """Name among the metrics of a run's results."""
    goal: str
    """``minimize`` or ``maximize``."""


class Found(NamedTuple):
    """What folders hold."""

    runs: tuple[RunFolder, ...]
    objectives: tuple[Objective, ...]
    notes: tuple[str, ...]


def find_runs(folders: Sequence[Path]) -> Found:
    """Read every run in or below the folders, and the plans of sweeps.

    Raises ``InputError`` for what is no folder, or if no run is found.
    """
    began, planned, objectives, notes = {}, {}, [], []
    for top in folders:
        check_path("folder", top)
        if not top.is_dir():
            raise InputError(
                f"{top} is no folder: name folders of runs or of sweeps, or a folder above them"
            )
        for folder, is_sweep in _walk(top):
            if not is_sweep:
                began[folder.resolve()] = folder
                continue
            try:
                jobs, objective = _plan(folder)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                notes.append(f"{folder / 'sweep.json'} is damaged ({error}): its plan is not known")
                continue
            planned |= {job.resolve(): (job, settings) for job, settings in jobs.items()}
            objectives += objective
    runs = []
    for place in [*planned, *(place for place in began if place not in planned)]:
        folder, settings = planned.get(place, (began.get(place), ()))
        assert folder is not None
        missing = RunFolder(folder, "missing", "it was planned, and never began")
        run = _read(folder) if place in began else missing
        runs.append(run if run.settings else replace(run, settings=settings))
    if not runs:
        raise InputError(
            f"no run in {', '.join(map(str, folders))}: the folder of a run holds results.json"
        )
    runs = sorted(runs, key=lambda run: _in_order(run.folder))
    return Found(tuple(_named(runs)), tuple(dict.fromkeys(objectives)), tuple(notes))


def _walk(top: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each folder of a run or of a sweep, and whether it is a sweep's."""
    for here, inside, files in os.walk(top):
        names = {*files, *inside}
        inside[:] = [name for name in inside if name not in PASSED_OVER]
        if "sweep.json" in names:
            yield Path(here), True
        elif {"results.json", "run.json"} & names:
            inside.clear()
            yield Path(here), False


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
        return RunFolder(folder, "unfinished", "it began, and nothing is saved yet")
    try:
        results = Results(**visible(vars(Results.load(path))))
        settings = tuple(map(str, results.config.get("overrides", ())))
        means = results.tables.rows("means")
        if any(set(MEANS) - set(row) for row in means):
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
        return replace(run, state="unfinished", reason="it is at work still, or was killed")
    if not means:
        why = "it has no table of means: older code made it, or it matched no SAEs"
        return replace(run, reason=why)
    return run


def _in_order(folder: Path) -> tuple:
    """Return what sorts 9 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)


def _named(runs: Sequence[RunFolder]) -> Iterator[RunFolder]:
    places = [run.folder.resolve() for run in runs]
    shared = places[0].parent if len(runs) == 1 else Path(os.path.commonpath(places))
    for run, place in zip(runs, places, strict=True):
        yield replace(run, name=visible(place.relative_to(shared).as_posix()))

"""The jobs of a sweep in its folder: planned, finished and failed ones, and their metrics."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from saematch.app.configuration import build, quoted, search_path
from saematch.app.launching import do_job, launch
from saematch.app.sweep.engine import next_point
from saematch.app.sweep.file import Point, SweepFile
from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json
from saematch.core.results import Results
from saematch.runs.interruption import Interrupted, record_killed
from saematch.runs.resuming import finished_as, refuse_other_run, settings_of
from saematch.runs.run import record_failure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    folder: str
    """Name of its folder in the sweep's folder: its number."""
    settings: list[str]
    point: Point


@dataclass
class Sweep:
    """A sweep and its folder, which contains ``sweep.json`` and a folder for each job."""

    file: SweepFile
    folder: Path
    seed: int
    begun: str = field(default_factory=lambda: f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}")
    """Time of the sweep's start and a random suffix, which are part of its jobs' names in W&B."""
    jobs: list[Job] = field(default_factory=list)
    _configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, point: Point) -> Job:
        """Plan a job. ``InputError`` if its settings do not fit together."""
        job = Job(str(len(self.jobs)), self.file.job_settings(point), point)
        self._config(job)
        self.jobs.append(job)
        return job

    def _config(self, job: Job) -> dict[str, Any]:
        if job.folder not in self._configs:
            self._configs[job.folder] = build(job.settings, self.file.config_dir)[1]
        return self._configs[job.folder]

    def next_point(self) -> Point:
        """Return the next point of a random or Bayesian sweep."""
        return next_point(self.file, [(j.point, self.reached(j)) for j in self.jobs], self.seed)

    def save(self) -> None:
        """Write ``sweep.json``."""
        names = {"study": self.file.study, "metric": self.file.metric._asdict()}
        jobs = [asdict(job) for job in self.jobs]
        content = {**names, **self._identity(), "begun": self.begun, "jobs": jobs}
        write_json(self.folder / "sweep.json", content)

    def resume(self) -> None:
        """Add the jobs in the folder's ``sweep.json``. ``InputError`` if it is another sweep's."""
        path = self.folder / "sweep.json"
        try:
            content = read_json(path, dict, "choose another --folder")
            existing = {name: content[name] for name in self._identity()}
            self.begun = content["begun"]
            points = [job["point"] for job in content["jobs"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); choose another --folder") from error
        for name, ours in self._identity().items():
            if existing[name] != ours:
                change = f"{name}: {_change(existing[name], ours)}"
                raise InputError(
                    f"{self.folder} contains another sweep ({change}); "
                    "choose another --folder, or use the same settings"
                )
        for point in points:
            self.add(point)

    def _identity(self) -> dict[str, object]:
        """Return what distinguishes this sweep from others, with JSON's types."""
        settings = [s for s in self.file.settings if settings_of({s.partition("=")[0]: 0})]
        method = {"method": self.file.method, "parameters": self.file.parameters}
        return json.loads(json.dumps({**method, "settings": settings, "seed": self.seed}))

    def missing(self) -> list[Job]:
        """Return the unfinished jobs.

        ``InputError`` if a job's folder contains a run with other settings, for example because a
        preset has changed.
        """
        for job in self.jobs:
            refuse_other_run(self.folder / job.folder, settings_of(self._config(job)))
        return [
            job for job in self.jobs if not finished_as(self.folder / job.folder, self._config(job))
        ]

    def do(self, jobs: Sequence[Job], launcher: Sequence[str]) -> None:
        """Do jobs. Record the jobs that were interrupted or ended without writing a result."""
        try:
            target = f"hydra.sweep.dir={quoted(str(self.folder))}"
            presets = search_path(self.file.config_dir)
            launched = [self._launched(job) for job in jobs]
            do = partial(do_job, len(jobs), self.file.metric.name)
            launch(do, launched, [*launcher, *presets, target])
        except RuntimeError as error:  # a killed worker ends the launcher too
            log.error("the launcher gave up: %s", " ".join(str(error).split()))
        except Interrupted as cause:  # a launcher kills the processes of its jobs
            record_killed(self.folder, cause)
            raise
        for job in jobs:
            folder = self.folder / job.folder
            if (folder / "results.json").exists():
                reason = "ended without a message: killed, or out of memory"
                record_failure(folder, self.file.study, job.settings, reason)

    def _launched(self, job: Job) -> list[str]:
        """Return a job's settings, its folder and its names in W&B."""
        study = re.sub(r"[^\w-]+", "_", self.file.study, flags=re.ASCII)[:60]
        names = {
            "WANDB_NAME": f"{study}-{job.folder}",
            "WANDB_RUN_ID": f"{study}-{self.begun}-{job.folder}",
            "WANDB_RUN_GROUP": f"{study}-{self.begun}",
        }
        variables = ",".join(f"{name}:{value}" for name, value in names.items())
        folder = f"hydra.sweep.subdir={quoted(job.folder)}"
        return [*job.settings, folder, f"+hydra.job.env_set={{{variables}}}"]

    def failures(self) -> list[Job]:
        """Return the jobs that failed, and those that never began because the launcher gave up."""
        results = [(job, self._results(job)) for job in self.jobs]
        return [job for job, result in results if result is None or result.status != "finished"]

    def reached(self, job: Job) -> float | None:
        """Return the sweep's metric of a finished job; None for other jobs.

        ``InputError`` if a finished job has no such metric.
        """
        results, name = self._results(job), self.file.metric.name
        if results is None or results.status != "finished":
            return None
        if name not in results.metrics:
            close = difflib.get_close_matches(name, results.metrics, n=4) or results.metrics
            raise InputError(
                f"the runs do not log the sweep's metric {name!r}; close ones: "
                f"{', '.join(list(close)[:8])}"
            )
        return results.metrics[name]

    def _results(self, job: Job) -> Results | None:
        path = self.folder / job.folder / "results.json"
        return Results.load(path) if path.exists() else None


def _change(before: Any, now: Any) -> str:
    """Return a description of a change; items that two lists share are left out."""
    if isinstance(before, list) and isinstance(now, list):
        shared = [item for item in before if item in now]
        before, now = ([item for item in items if item not in shared] for items in (before, now))
    return f"{before} -> {now}"

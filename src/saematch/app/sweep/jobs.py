"""The jobs of a sweep in its folder: which there are, which are done, and what they reached."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from saematch.app.configuration import build, quoted, search_path
from saematch.app.launching import launch
from saematch.app.sweep.engine import next_point
from saematch.app.sweep.file import Point, SweepFile
from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json
from saematch.core.results import Results
from saematch.run.interruption import Interrupted, record_killed
from saematch.run.resuming import finished_as, refuse_other_run, settings_of
from saematch.run.run import record_failure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    folder: str
    """Its number, which is its folder in the sweep's."""
    settings: list[str]
    point: Point


@dataclass
class Sweep:
    """A sweep and its folder, which holds ``sweep.json`` and a folder for each job."""

    file: SweepFile
    folder: Path
    seed: int
    begun: str = field(default_factory=lambda: f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}")
    """When the sweep began, and a mark of its own: part of its jobs' names in W&B."""
    jobs: list[Job] = field(default_factory=list)
    _configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, point: Point) -> Job:
        """Plan a job, after checking that its settings go together (``InputError``)."""
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
        about = {"study": self.file.study, "metric": self.file.metric._asdict(), **self._about()}
        jobs = [asdict(job) for job in self.jobs]
        write_json(self.folder / "sweep.json", {**about, "begun": self.begun, "jobs": jobs})

    def resume(self) -> None:
        """Take over what the folder holds; ``InputError`` if that is another sweep."""
        path = self.folder / "sweep.json"
        try:
            kept = read_json(path, dict, "choose another --folder")
            theirs = {name: kept[name] for name in self._about()}
            self.begun = kept["begun"]
            points = [job["point"] for job in kept["jobs"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); choose another --folder") from error
        for name, ours in self._about().items():
            if theirs[name] != ours:
                raise InputError(
                    f"{self.folder} holds another sweep ({name}: {_change(theirs[name], ours)}); "
                    "choose another --folder, or the same settings"
                )
        for point in points:
            self.add(point)

    def _about(self) -> dict[str, object]:
        """Return what tells one sweep from another, as JSON gives it back."""
        told = [one for one in self.file.settings if settings_of({one.partition("=")[0]: 0})]
        about = {"method": self.file.method, "parameters": self.file.parameters}
        return json.loads(json.dumps({**about, "settings": told, "seed": self.seed}))

    def missing(self) -> list[Job]:
        """Return the jobs that are not finished.

        ``InputError`` if a job's folder holds a run of other settings, as after a preset changed.
        """
        for job in self.jobs:
            refuse_other_run(self.folder / job.folder, settings_of(self._config(job)))
        return [
            job for job in self.jobs if not finished_as(self.folder / job.folder, self._config(job))
        ]

    def do(self, jobs: Sequence[Job], launcher: Sequence[str]) -> None:
        """Do jobs. One that was interrupted, or ended without a word, is recorded as such."""
        try:
            target = f"hydra.sweep.dir={quoted(str(self.folder))}"
            presets = search_path(self.file.config_dir)
            launch([self._told(job) for job in jobs], [*launcher, *presets, target])
        except RuntimeError as error:  # a worker was killed, and with it the launcher
            log.error("the launcher gave up: %s", " ".join(str(error).split()))
        except Interrupted as cause:  # a launcher kills the processes of its jobs
            record_killed(self.folder, cause)
            raise
        for job in jobs:
            folder = self.folder / job.folder
            if (folder / "results.json").exists():
                said = "ended without a word: killed, or out of memory"
                record_failure(folder, self.file.study, job.settings, said)

    def _told(self, job: Job) -> list[str]:
        """Return a job's settings, where it goes, and by which names it is known in W&B."""
        study = re.sub(r"[^\w-]+", "_", self.file.study, flags=re.ASCII)[:60]
        names = {
            "WANDB_NAME": f"{study}-{job.folder}",
            "WANDB_RUN_ID": f"{study}-{self.begun}-{job.folder}",
            "WANDB_RUN_GROUP": f"{study}-{self.begun}",
        }
        told = ",".join(f"{name}:{value}" for name, value in names.items())
        here = [f"hydra.sweep.subdir={quoted(job.folder)}", f"+hydra.job.env_set={{{told}}}"]
        return [*job.settings, *here]

    def failures(self) -> list[Job]:
        """Return the jobs that failed or, since the launcher gave up, never began."""
        tried = [(job, self._results(job)) for job in self.jobs]
        return [job for job, found in tried if found is None or found.status != "finished"]

    def reached(self, job: Job) -> float | None:
        """Return the metric of a finished job, None of another.

        ``InputError`` if a finished job has no such metric.
        """
        results, name = self._results(job), self.file.metric.name
        if results is None or results.status != "finished":
            return None
        if name not in results.metrics:
            close = difflib.get_close_matches(name, results.metrics, n=4) or results.metrics
            raise InputError(
                f"the sweep's metric {name!r} is none of those that its runs log; close ones: "
                f"{', '.join(list(close)[:8])}"
            )
        return results.metrics[name]

    def _results(self, job: Job) -> Results | None:
        path = self.folder / job.folder / "results.json"
        return Results.load(path) if path.exists() else None


def _change(before: Any, now: Any) -> str:
    """Say what changed; of lists only what one of them lacks."""
    if isinstance(before, list) and isinstance(now, list):
        both = [one for one in before if one in now]
        before, now = ([one for one in some if one not in both] for some in (before, now))
    return f"{before} -> {now}"

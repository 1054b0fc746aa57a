"""Mirrors of a run's results in Weights & Biases or CSV files. Only this file imports wandb."""

from __future__ import annotations

import logging
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.results import Results
from saematch.core.safe_text import for_spreadsheets
from saematch.core.specs import spec
from saematch.core.tables import frame_of, rows_of
from saematch.report.summary import charts_by_layer, history_by_layer
from saematch.runs.run_folders import check_name
from saematch.runs.run_names import run_label, wandb_id

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

REACH_SECONDS = 3.0
"""Longest wait for the W&B server before a run continues offline."""
LOGIN_SECONDS = 30
"""Longest wait for the check of the API key."""
OFFLINE = ("offline", "dryrun")
"""Values of ``WANDB_MODE`` that contact no server."""


@dataclass(frozen=True)
class Outcome:
    """Output of a finished run."""

    results: Results
    figures: Mapping[str, Path]
    matches: Path
    """Folder of the match files."""


@runtime_checkable
class Tracker(Protocol):
    """A mirror of results, during a run and at its end."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """Mirror a point of a training curve at ``samples``."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Mirror everything and close the mirror."""
        ...

    def fail(self) -> None:
        """Close the mirror of a run that failed."""
        ...


@spec("logger")
class NoLogging:
    """Spec: keep results only in the run's folder."""

    def check(self) -> None:
        """Accept everything: there is no server."""

    def start(self, name: str, folder: Path, config: dict[str, Any]) -> Tracker:
        """Return a tracker that does nothing."""
        return _NoTracker()


@spec("logger")
class CsvLogging:
    """Spec: mirror the history to ``metrics.csv`` and each table to a CSV file."""

    def check(self) -> None:
        """Accept everything: there is no server."""

    def start(self, name: str, folder: Path, config: dict[str, Any]) -> Tracker:
        """Return a tracker that writes into ``folder/csv``."""
        return _CsvTracker(folder)


@spec("logger")
class WandbLogging:
    """Spec: mirror to Weights & Biases, or into the run's folder if W&B cannot be reached."""

    project: str = "saematch"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    offline: bool = False
    """Whether the run stays offline without contacting the server."""

    def check(self) -> None:
        """Raise ``InputError`` for a bad variable ``WANDB_...`` of the environment."""
        import wandb

        _chosen_id()
        with settings_accepted():
            wandb.Settings().update_from_env_vars(os.environ)

    def start(self, name: str, folder: Path, config: dict[str, Any]) -> Tracker:
        """Open the W&B run, and log its address or folder in one line."""
        run_id = _chosen_id() or wandb_id(name, folder)
        return self.open(run_label(name, config.get("overrides", ())), folder, config, run_id)

    def open(
        self,
        name: str,
        folder: Path,
        config: dict[str, Any],
        run_id: str,
        job_type: str | None = None,
    ) -> Tracker:
        """Open the W&B run with this identifier."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        if os.environ.get("WANDB_MODE") == "disabled":
            return _NoTracker()
        with _environment_kept("WANDB_SILENT"), settings_accepted():
            os.environ.setdefault("WANDB_SILENT", "true")  # our own line has the address
            server = wandb.setup().settings.base_url
        reason = self._why_offline(server)
        if reason:
            mirror = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
            log.info("Weights & Biases is offline (%s); to upload later: wandb sync %s",
                     reason, mirror)  # fmt: skip
        with settings_accepted():
            settings = wandb.Settings(mode="offline" if reason else "online", console="off")
        logger = WandbLogger(  # W&B reads the environment once; jobs of a sweep share a process
            project=self.project,
            entity=self.entity,
            group=self.group or os.environ.get("WANDB_RUN_GROUP"),
            tags=list(self.tags),
            name=os.environ.get("WANDB_NAME", None if "WANDB_SWEEP_ID" in os.environ else name),
            id=run_id,
            job_type=job_type,
            save_dir=str(folder.resolve()),  # W&B remembers the first folder of a process
            offline=bool(reason),
            log_model=False,
            resume="allow",
            config=config,
            settings=settings,
        )
        with _environment_kept("WANDB_MODE"), settings_accepted():
            run = logger.experiment  # Lightning sets the mode to dryrun for an offline run
        run.define_metric("layer")
        run.define_metric("*", step_metric="layer")
        run.define_metric("training/*", step_metric="samples")
        displaced = {key: value for key, value in config.items() if run.config[key] != value}
        if displaced:  # a sweep fixes its own value, as objective=decoder, for its plots
            run.config.update({"resolved": displaced}, allow_val_change=True)
        if not reason:
            log.info("Weights & Biases: %s", run.url)
        return _WandbTracker(logger, folder / "wandb")

    def _why_offline(self, server: str) -> str:
        """Return the reason why the run is offline; empty if it can be online."""
        import wandb

        if self.offline or os.environ.get("WANDB_MODE") in OFFLINE:
            return "as requested"
        try:
            urllib.request.urlopen(server, timeout=REACH_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # the server answered
        except OSError:
            return "its server cannot be reached"
        try:
            if not wandb.login(prompt=False, timeout=LOGIN_SECONDS):
                return "no API key: set WANDB_API_KEY, or use wandb login"
        except (wandb.errors.Error, ValueError) as error:
            return f"its server refuses the API key: {str(error).splitlines()[0]}"
        return ""


def _chosen_id() -> str | None:
    """Return the id of the W&B run from the environment, for example from a sweep's agent."""
    run_id = os.environ.get("WANDB_RUN_ID")
    return None if run_id is None else check_name("WANDB_RUN_ID", run_id)


class _NoTracker:
    def log(self, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self, outcome: Outcome) -> None:
        pass

    def fail(self) -> None:
        pass


class _CsvTracker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, metrics: Mapping[str, float]) -> None:
        pass  # the table of curves becomes its own file

    def finish(self, outcome: Outcome) -> None:
        history = history_by_layer(outcome.results.tables).items()
        metrics = frame_of([{"layer": layer, **of_layer} for layer, of_layer in history])
        for name, frame in {"metrics": metrics, **_tables(outcome)}.items():
            with replacing(self.folder / "csv" / f"{name}.csv") as part:
                for_spreadsheets(frame).to_csv(part, index=False)

    def fail(self) -> None:
        pass


def _tables(outcome: Outcome) -> dict[str, DataFrame]:
    """Return the tables of a run, and the definitions of its metrics as the table ``columns``."""
    tables = outcome.results.tables
    names = ("name", "label", "unit", "better", "meaning")
    columns = [{name: getattr(c, name) for name in names} for c in tables.columns.values()]
    return {**tables, "columns": frame_of(columns)}


class _WandbTracker:
    def __init__(self, logger: Any, staging: Path) -> None:
        self.logger = logger
        self.staging = staging

    def log(self, metrics: Mapping[str, float]) -> None:
        self.logger.log_metrics(dict(metrics))

    def finish(self, outcome: Outcome) -> None:
        import wandb

        try:
            with _staged_in(self.staging):
                self._mirror(outcome)
                wandb.finish()
            _set_aside(self.staging, Path(self.logger.experiment.dir).parent.name)
        except (wandb.errors.Error, OSError) as error:  # the run itself is complete and saved
            log.warning("Weights & Biases did not accept everything: %s", error)
            with suppress(wandb.errors.Error, OSError):
                self.fail()  # else the next run of this process would continue this one

    def _mirror(self, outcome: Outcome) -> None:
        import wandb

        run = self.logger.experiment
        for layer, metrics in history_by_layer(outcome.results.tables).items():
            self.logger.log_metrics({"layer": layer, **metrics})
        for name, frame in _tables(outcome).items():
            if len(frame):
                data = [list(row.values()) for row in rows_of(frame)]
                self.logger.log_table(f"tables/{name}", columns=list(frame), data=data)
        charts = {}
        for chart in charts_by_layer(outcome.results.tables):
            table = wandb.Table(columns=["layer", "line", chart.metric], data=chart.points)
            fields = {"step": "layer", "lineKey": "line", "lineVal": chart.metric}
            texts = {"title": chart.title, "xname": "layer"}
            charts[f"charts/{chart.name}"] = wandb.plot_table(
                "wandb/lineseries/v0", table, fields, texts
            )
        if charts:
            run.log(charts)
        for name, path in outcome.figures.items():
            self.logger.log_image(f"figures/{name}", images=[str(path)])
        if outcome.matches.exists():  # a run that trains SAEs has none
            artifact = wandb.Artifact(
                f"matches-{run.id}", type="matches", metadata=outcome.results.provenance
            )
            for path in sorted(outcome.matches.rglob("*.safetensors")):  # no partial files
                artifact.add_file(str(path), path.relative_to(outcome.matches).as_posix())
            run.log_artifact(artifact)
        run.summary.update(outcome.results.metrics)

    def fail(self) -> None:
        import wandb

        try:
            wandb.finish(exit_code=1)
        except (wandb.errors.Error, OSError) as error:  # the run's own error matters more
            log.warning("Weights & Biases did not record the failure: %s", error)


@contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Restore an environment variable after the block."""
    value = os.environ.get(name)
    try:
        yield
    finally:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def settings_accepted() -> Iterator[None]:
    """Raise ``InputError`` if W&B refuses a setting of the logger or the environment."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError) as error:
        reason = str(error)
        if hasattr(error, "errors"):  # of pydantic, whose text has links and values
            parts = [f"{part['loc'][0]}: {part['msg']}" for part in error.errors()]
            reason = ", ".join(parts)
        reason = " ".join(reason.split())
        raise InputError(
            f"Weights & Biases refuses a setting of logger or a variable WANDB_...: {reason}"
        ) from error


def _set_aside(folder: Path, last: str) -> None:
    """Rename offline logs of earlier processes of a run; the last process has logged everything.

    The log of a killed process ends in a partial record, which makes ``wandb sync`` upload no log.
    """
    for earlier in folder.glob("offline-run-*"):
        if earlier.name != last and not any(earlier.glob("*.wandb.synced")):
            earlier.rename(folder / f"replaced-{earlier.name}")


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Stage uploads in the run's folder, unless the user has set another folder."""
    with _environment_kept("WANDB_DATA_DIR"):
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve()))
        yield

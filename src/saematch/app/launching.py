"""Do a run, the jobs of ``--multirun`` or the jobs of a sweep from composed configurations."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from saematch.app.configuration import CONF, built
from saematch.app.messages import MISTAKES, one_line
from saematch.core.errors import InputError, described
from saematch.core.files import unwritable
from saematch.runs.interruption import Interrupted, interruptible, record_interruption
from saematch.runs.run_folders import is_held, remove_unused, run_folder

if TYPE_CHECKING:
    from saematch.core.results import Results

log = logging.getLogger(__name__)
_BUG = "%s failed unexpectedly"


class Begun(Callback):
    """The configuration of the current run, which Hydra itself drops when the run ends."""

    config: ClassVar[DictConfig | None] = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the configuration of a single run."""
        Begun.config = config

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the configuration that all jobs of a ``--multirun`` share."""
        Begun.config = config

    @classmethod
    def is_multirun(cls) -> bool:
        """Return whether Hydra is running the jobs of a ``--multirun``."""
        return cls.config is not None and cls.config.hydra.mode == RunMode.MULTIRUN

    @classmethod
    def folder(cls) -> Path | None:
        """Return the folder of the run or of all jobs; None before Hydra starts one."""
        if cls.config is None:
            return None
        return Path((cls.config.hydra.sweep if cls.is_multirun() else cls.config.hydra.run).dir)


def run_once() -> None:
    """Do the run of the command line, or the jobs of ``--multirun``."""
    try:
        with _known_plugins():
            _run()
    except OSError as error:
        folder = Begun.folder()
        if folder is None or error.filename not in map(str, (folder, *folder.parents)):
            raise
        raise unwritable(folder, str(error.strerror), "choose another run_id or folder") from error


@contextmanager
def _known_plugins() -> Iterator[None]:
    """Raise ``InputError`` if Hydra does not find the plug-in of the launcher or sweeper."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Unknown plugin class"):
            raise
        raise InputError(str(error)) from error


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def _run(config: DictConfig) -> None:
    from saematch.report.terminal import print_results

    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    try:
        results = do_run(config, folder)
    except MISTAKES as error:  # exit before Hydra prints its own lines about them
        if os.environ.get("SAEMATCH_TRACEBACK") or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the launcher continues with the other jobs
        sys.exit(f"saematch: {one_line(error)}")
    except Exception:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # of several failures Hydra shows the first
            log.exception(_BUG, folder)
        raise
    print_results(results, folder)


def do_run(config: DictConfig, folder: Path) -> Results:
    """Do the run.

    A run that fails before it does any work leaves no folder; a job of a sweep leaves its error.
    """
    hydra_config: DictConfig = HydraConfig.get()  # type: ignore[assignment]
    overrides = list(hydra_config.overrides.task)
    with interruptible():  # a launcher's job may have its own process
        try:
            from saematch.runs.run import record_failure, run

            try:
                experiment, resolved = built(config, hydra_config)
                return run(experiment, resolved, folder)
            except Exception as error:
                is_job = hydra_config.mode == RunMode.MULTIRUN
                if is_job and not (folder / "run.json").exists():
                    reason = one_line(error) if isinstance(error, MISTAKES) else described(error)
                    record_failure(folder, config.name, overrides, reason)
                raise
        except Interrupted as cause:  # before the run could record it
            with suppress(OSError, ValueError):  # the exit code matters more
                if not (folder.exists() and is_held(folder)):
                    record_interruption(folder, config.name, overrides, cause)
            raise
        finally:
            remove_unused(folder)


def do_job(n_jobs: int, metric: str, config: DictConfig) -> None:
    """Do one job of a sweep, and log its value of the sweep's metric.

    If the job fails, its log and its ``results.json`` hold the reason.
    """
    hydra_config = HydraConfig.get()
    folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
    settings = " ".join(hydra_config.overrides.task)
    log.info("\n[%d/%d] %s: %s", hydra_config.job.num + 1, n_jobs, folder, settings)
    try:
        results = do_run(config, folder)
        value = results.metrics.get(metric)
        log.info("%s: finished in %.0f s%s", folder, results.provenance["seconds"],
                 "" if value is None else f", {metric} {value:.4g}")  # fmt: skip
    except MISTAKES as error:
        log.error("%s failed: %s", folder, one_line(error))
    except Exception:  # logged here, since another process cannot pass its traceback on
        log.exception(_BUG, folder)


def do_part(config: DictConfig) -> str:
    """Do a worker's part of a run that several jobs do; the jobs' folder has their locks.

    Returns the caller's mistake in one line, which is empty without one.
    """
    from saematch.runs.worker import work

    hydra_config: DictConfig = HydraConfig.get()  # type: ignore[assignment]
    with interruptible():
        try:
            experiment, _ = built(config, hydra_config)
            work(experiment, run_folder(config.name, config.run_id),
                 Path(hydra_config.sweep.dir, "locks"))  # fmt: skip
        except MISTAKES as error:
            return one_line(error)
    return ""


def do_whole(config: DictConfig) -> str:
    """Do a run as a job; return the caller's mistake in one line, which is empty without one."""
    try:
        do_run(config, run_folder(config.name, config.run_id))
    except MISTAKES as error:
        return one_line(error)
    return ""


_SWEEP_SETTINGS = (
    "hydra.mode=MULTIRUN",
    "hydra.hydra_logging.root.level=WARNING",  # each job logs its own number
    "hydra.hydra_logging.formatters.simple.format='%(message)s'",
    "hydra.hydra_logging.handlers.console.stream='ext://sys.stderr'",
)


def launch(
    task: Callable[[DictConfig], Any], jobs: Sequence[Sequence[str]], settings: Sequence[str]
) -> list[Any]:
    """Do jobs, each with its own settings, on the launcher that ``settings`` choose.

    ``settings`` are Hydra's own, such as ``hydra/launcher=joblib``. Returns what ``task`` returned
    for each job that did not fail. A job that raises does not stop the others. Raises
    ``RuntimeError`` if the launcher gives up, for example because a process of it was killed.
    """
    values = []
    with _launcher(task, settings) as launcher:
        for job in launcher.launch([list(job) for job in jobs], initial_job_idx=0):
            if job.status == JobStatus.FAILED:
                log.error("a job failed unexpectedly", exc_info=job._return_value)
            else:
                values.append(job.return_value)
    return values


def check_launcher(settings: Sequence[str]) -> None:
    """Refuse an unknown launcher before any job is planned."""
    with _launcher(lambda _: None, settings):
        pass


@contextmanager
def _launcher(task: Callable[[DictConfig], Any], settings: Sequence[str]) -> Iterator[Launcher]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(
            "config", [*_SWEEP_SETTINGS, *settings], run_mode=RunMode.MULTIRUN
        )
        with _known_plugins():
            launcher = Plugins.instance().instantiate_launcher(
                config=config,
                hydra_context=HydraContext(loader, Callbacks(config)),
                task_function=task,
            )
        yield launcher

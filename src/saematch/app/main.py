"""The command ``python -m saematch``. The only file that knows Hydra."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from saematch.core.errors import InputError
from saematch.core.files import PRESETS
from saematch.core.safe_text import visible
from saematch.core.specs import check_fields
from saematch.run.interruption import (
    Interrupted,
    interruptible,
    record_interruption,
    record_killed,
)
from saematch.run.run_folders import is_held, new_run_id, remove_unused, run_folder

if TYPE_CHECKING:
    from saematch.core.results import Results
    from saematch.run.experiment import Experiment

log = logging.getLogger(__name__)

CONF = str(PRESETS)

# Files in conf/hydra/launcher have the names of the plugins' launchers on purpose
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore")

OmegaConf.register_new_resolver("new_run_id", new_run_id, use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *names: str(run_folder(*names)), replace=True)

REFERRED = ("run_id", "objective", "matcher", "setting")
"""Settings that are no part of a run themselves: other settings refer to them."""

MISTAKES = (HydraException, OmegaConfBaseException, InputError, OSError)
"""What a caller's mistake ends in; anything else is ours and shows its traceback."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def _run(config: DictConfig) -> None:
    from saematch.report.terminal import print_results

    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    try:
        results = _do(config, folder)
    except MISTAKES as error:  # leave before Hydra prints its own lines about them
        if os.environ.get("SAEMATCH_TRACEBACK") or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the launcher goes on with the other jobs
        sys.exit(f"saematch: {one_line(error)}")
    print_results(results, folder)


def _do(config: DictConfig, folder: Path) -> Results:
    """Do the run. One that fails before any work leaves no folder, or, as a job, its error."""
    about = HydraConfig.get()
    overrides = list(about.overrides.task)
    with interruptible():  # a launcher's job has a process of its own
        try:
            from saematch.run.run import record_failure, run

            try:
                experiment, resolved = _built(config, about)
                return run(experiment, resolved, folder)
            except MISTAKES as error:
                if about.mode == RunMode.MULTIRUN and not (folder / "run.json").exists():
                    record_failure(folder, config.name, overrides, one_line(error))
                raise
        except Interrupted as cause:  # before the run could record it
            with suppress(OSError, ValueError):  # the exit code matters more
                if not (folder.exists() and is_held(folder)):
                    record_interruption(folder, config.name, overrides, cause)
            raise
        finally:
            remove_unused(folder)


def _job(n_jobs: int, config: DictConfig) -> None:
    """Do one job of a sweep; its mistakes are told by its log and its ``results.json``."""
    about = HydraConfig.get()
    folder = Path(os.path.relpath(about.runtime.output_dir))
    told = " ".join(about.overrides.task)
    log.info("\n[%d/%d] %s: %s", about.job.num + 1, n_jobs, folder, told)
    try:
        _do(config, folder)
    except MISTAKES as error:
        log.error("%s failed: %s", folder, one_line(error))


_OF_SWEEPS = (
    "hydra.mode=MULTIRUN",
    "hydra.hydra_logging.root.level=WARNING",  # each job says itself which it is
    "hydra.hydra_logging.formatters.simple.format='%(message)s'",
    "hydra.hydra_logging.handlers.console.stream='ext://sys.stderr'",
)


def launch(jobs: Sequence[Sequence[str]], settings: Sequence[str]) -> None:
    """Do jobs, each of its own settings, by the launcher that ``settings`` choose.

    ``settings`` are Hydra's own, as ``hydra/launcher=joblib``. What becomes of a job is in its
    folder; a job that fails keeps no other from being done.
    """
    with _launcher(len(jobs), settings) as launcher:
        for done in launcher.launch([list(job) for job in jobs], initial_job_idx=0):
            if done.status == JobStatus.FAILED:
                log.error("a job failed unexpectedly", exc_info=done._return_value)


def check_launcher(settings: Sequence[str]) -> None:
    """Refuse a launcher that there is not, before any job is planned."""
    with _launcher(0, settings):
        pass


@contextmanager
def _launcher(n_jobs: int, settings: Sequence[str]) -> Iterator[Launcher]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(
            "config", [*_OF_SWEEPS, *settings], run_mode=RunMode.MULTIRUN
        )
        yield Plugins.instance().instantiate_launcher(
            config=config,
            hydra_context=HydraContext(loader, Callbacks(config)),
            task_function=partial(_job, n_jobs),
        )


def quoted(value: str) -> str:
    """Return a value as Hydra reads it back, whatever signs it holds."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def spread(setting: str) -> tuple[str, list[str]]:
    """Return the setting's key, and all settings that ``key=a,b`` or ``key=range(0,3)`` means."""
    if "=" not in setting or "glob(" in setting:
        raise InputError(f"{setting!r} is no setting: write key=value, or key=a,b to sweep over it")
    (parsed,) = OverridesParser.create().parse_overrides([setting])
    key = parsed.get_key_element()
    if not parsed.is_sweep_override():
        return key, [setting]
    if not parsed.is_discrete_sweep():
        raise InputError(f"{setting}: give the values one by one, as {key}=1,2,3")
    return key, [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def check_choices(settings: Sequence[str]) -> None:
    """Refuse a number as the name of a preset, since Hydra raises a traceback for it."""
    for choice in OverridesParser.create().parse_overrides(list(settings)):
        group = choice.key_or_group
        if choice.is_sweep_override() or not (PRESETS / group).is_dir():
            continue
        value = choice.value()
        names = value if isinstance(value, list) else [value]
        if not isinstance(value, dict) and not all(isinstance(name, str) for name in names):
            there = ", ".join(sorted(path.stem for path in (PRESETS / group).glob("*.yaml")))
            raise InputError(f"{choice.input_line}: choose one of {there}")


def _built(config: DictConfig, about: DictConfig) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and the configuration with what was chosen; ``about`` is Hydra's."""
    from saematch.run.experiment import Experiment

    run_folder(config.name, config.run_id)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    fields = [field.name for field in dataclasses.fields(Experiment)]
    _check_settings(Experiment, fields, resolved, about.overrides.task)
    resolved["overrides"] = list(about.overrides.task)
    choices = OmegaConf.to_container(about.runtime.choices)
    assert isinstance(choices, dict)
    chosen = {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")}
    resolved["choices"] = {**chosen, "arms": list(resolved["arms"])}
    parts = hydra.utils.instantiate(config, _convert_="object")
    for name in REFERRED:
        del parts[name]
    return Experiment(**parts), resolved


def _check_settings(
    experiment: type[Experiment],
    fields: Sequence[str],
    resolved: Mapping[str, Any],
    overrides: Sequence[str],
) -> None:
    """Refuse settings that are unknown, missing, of a wrong type, or without effect."""
    for override in overrides:
        if override.endswith("={}"):
            raise InputError(
                f"{override} has no effect: it adds nothing to what is chosen already. Choose "
                "others by name, as in arms=[folded,random]"
            )
    unknown = [name for name in resolved if name not in (*fields, *REFERRED)]
    if unknown:
        raise InputError(f"there is no setting {unknown[0]!r}; see python -m saematch --help")
    missing = [name for name in fields if name not in resolved]
    if missing:
        raise InputError(
            f"{missing[0]} is missing: choose at least one, as in arms=[folded,random]"
            if missing[0] == "arms"
            else f"{missing[0]} is missing: leave its default, or choose another"
        )
    if isinstance(resolved["second_judge"], str):
        choice = resolved["second_judge"]
        raise InputError(f"second_judge={choice}: it is chosen by judge@second_judge={choice}")
    plain = {name: resolved[name] for name in fields if not isinstance(resolved[name], Mapping)}
    check_fields(experiment, plain)


def build(overrides: list[str]) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment that the settings of a command line make, and its configuration."""
    refuse_secrets(overrides)
    GlobalHydra.instance().clear()
    check_choices(overrides)
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("config", overrides, return_hydra_config=True)
    about = config.hydra
    with open_dict(config):
        del config["hydra"]
    return _built(config, about)


_VARIABLES = r"['\"]?(null|(?-i:[A-Z][A-Z0-9_]*(,[A-Z][A-Z0-9_]*)*))?['\"]?$"
_KEY = re.compile(
    r"(\b|_)(api_?key|key|secret|password|token)[=:]|\bsk-[\w-]{16}"
    rf"|://[^'\"\s]*@|base_url=.*[@?#]|key_variable=(?!{_VARIABLES})",
    re.IGNORECASE,
)
"""What looks like a key in an argument."""

_HOME = re.compile(r"(?<=[=\[,])~(?=/)")
"""A path's ``~`` in an argument: shells leave it, and Hydra's grammar has no such sign."""

_ENVIRONMENT = re.compile(r"[+~]*hydra\b.*\b(env_set|env_vars)\b", re.DOTALL)
"""Settings of Hydra and its launchers that hold values of environment variables."""


def refuse_secrets(settings: Sequence[str]) -> None:
    """Refuse settings that may hold a key, since settings are written to files."""
    if any(_KEY.search(setting) for setting in settings):
        raise InputError(
            "no key or password is taken from the command line: put it into an environment "
            "variable, and that one's name into judge.key_variable"
        )
    environment = [match for match in map(_ENVIRONMENT.match, settings) if match]
    if environment:
        raise InputError(
            f"{environment[0][1]} is no setting here, since Hydra writes its values to files: set "
            "environment variables in the shell that starts the command"
        )


_LAUNCHER = re.compile(
    r"class : 'hydra_plugins\.hydra_(\w+)_launcher\.|(?:find|load) 'hydra/launcher/(submitit)_"
)
"""What Hydra says of a launcher whose package is missing."""


class Begun(Callback):
    """Keeps the configuration of what Hydra runs, which Hydra itself forgets when it is left."""

    config: ClassVar[DictConfig | None] = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the configuration of a single run."""
        Begun.config = config

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the configuration that the jobs of a ``--multirun`` share."""
        Begun.config = config


def _continuation(words: Sequence[str]) -> str:
    """Return the command that continues an interrupted one of these words."""
    more = []
    if words[:1] == ["sweep"]:
        more = ["--resume"]
    elif Begun.config is not None and not any(word.startswith("run_id=") for word in words):
        more = [f"run_id={Begun.config.run_id}"]  # the default is new each time
    return shlex.join(["python", "-m", "saematch", *words, *(m for m in more if m not in words)])


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 1.

    A signal ends it in one line that says how to continue, and 128 plus the signal's number.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails where there is none
    sys.argv[1:] = [_HOME.sub(lambda _: home, argument) for argument in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of Hydra's printer
    Begun.config = None
    try:
        refuse_secrets(sys.argv[1:])
        with interruptible():
            _command(sys.argv[1:])
    except Interrupted as cause:
        if Begun.config is not None and Begun.config.hydra.mode == RunMode.MULTIRUN:
            with suppress(OSError, ValueError):
                record_killed(Path(Begun.config.hydra.sweep.dir), cause)
        sys.stderr.write(f"saematch: {cause}; continue with: {_continuation(sys.argv[1:])}\n")
        sys.exit(cause.exit_code)
    except MISTAKES as error:
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {one_line(error)}")
    except RuntimeError as error:
        if "Unknown plugin class" not in str(error):
            raise
        sys.exit(f"saematch: {one_line(error)}")


def _command(words: Sequence[str]) -> None:
    """Run the subcommand that the first word names, or without one a run."""
    if words[:1] == ["reproduce"]:
        from saematch.app.reproduce import main as reproduce

        reproduce(words[1:])
    elif words[:1] == ["sweep"]:
        from saematch.app.sweep.command import main as sweep

        sweep(words[1:])
    elif words[:1] == ["compare"]:
        from saematch.app.compare import main as compare

        compare(words[1:])
    elif words[:1] == ["saes"]:
        from saematch.app.saes import main as saes

        saes(words[1:])
    else:
        check_choices([word for word in words if "=" in word and not word.startswith("-")])
        _run()


def one_line(error: BaseException) -> str:
    """Return what the caller did wrong, without what Hydra wraps around it; safe to print."""
    return visible(_sentence(error))


def _sentence(error: BaseException) -> str:
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    while isinstance(error, InterpolationResolutionError) and error.__context__ is not None:
        error = error.__context__  # what a resolver of ours raised
    if launcher := _LAUNCHER.search(str(error)):
        name = launcher[1] or launcher[2]
        extra = {"submitit": "slurm"}.get(name, name)
        return f"hydra/launcher={name} is not installed: pip install 'saematch[{extra}]'"
    if isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file).rsplit("/", 1)
        return f"there is no {wanted[0]}={wanted[-1]}: choose one of {', '.join(error.options)}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if text.startswith(("mismatched input", "no viable alternative", "token recognition")):
        quoted = "'sae.path=\"saes/layer_{layer}\"'"
        return f"{text.partition(' See ')[0]}: a value with other signs wants quotes, as {quoted}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], _known_keys(), n=1)
        close = ["+experiment"] if unknown[1] == "experiment" else close
        close = ["intervals.n_replicates"] if unknown[1].startswith("bootstrap") else close
        hint = f"did you mean {close[0]}?" if close else "see python -m saematch --help"
        return f"there is no setting {unknown[1]!r}; {hint}"
    return text or type(error).__name__


def _known_keys() -> list[str]:
    """Return every setting and config group."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("config"), resolve=False)
    keys, todo = [], [("", config)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{k}" if prefix else str(k), inner) for k, inner in value.items()]
        if prefix:
            keys.append(prefix)
    return [*keys, *(path.name for path in Path(CONF).iterdir() if path.is_dir())]

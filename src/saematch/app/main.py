"""The command line of saematch: choose the subcommand, and end it with a message and exit code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from saematch import __version__
from saematch.app.commands import COMMANDS
from saematch.app.configuration import check_choices, without_config_dir
from saematch.app.launching import Begun, run_once
from saematch.app.messages import MISTAKES, one_line
from saematch.app.renaming import refuse_old_names
from saematch.app.secrets import refuse_secrets
from saematch.app.words import options_first
from saematch.runs.interruption import Interrupted, interruptible, record_killed

_HOME = re.compile(r"(?<=[=\[,])~(?=/)")
"""The ``~`` of a path inside an argument: shells keep it, and Hydra cannot parse it."""
_SPINS = "2000"
"""Number of turns that an idle thread of PyTorch waits busily for work, some microseconds.

The default of GNU OpenMP is milliseconds. If other programs use the cores too, the threads then
take turns at waiting for each other: with three busy programs on two cores, reading texts took
eight times as long.
"""


def console() -> None:
    """Run the console script ``saematch``: ``main``, with the imports of ``python -m saematch``.

    Modules in the current folder can be imported, so that a preset's ``_target_`` may name them.
    Installed packages of the same name take precedence.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    main()


def main() -> None:
    """Run the command line.

    Bad input ends it with one line on stderr and exit code 1. A signal ends it with a line that
    shows how to continue, and with exit code 128 plus the signal's number.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails where there is none
    sys.argv[1:] = [_HOME.sub(lambda _: home, argument) for argument in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of Hydra's printer
    if "OMP_WAIT_POLICY" not in os.environ:  # read when PyTorch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    Begun.config = None
    try:
        refuse_secrets(sys.argv[1:])
        refuse_old_names(sys.argv[1:])
        with interruptible():
            _command(sys.argv[1:])
    except Interrupted as cause:
        folder = Begun.folder()
        if folder is not None and Begun.is_multirun():
            with suppress(OSError, ValueError):
                record_killed(folder, cause)
        sys.stderr.write(f"saematch: {cause}; continue with: {continuation(sys.argv[1:])}\n")
        sys.exit(cause.exit_code)
    except MISTAKES as error:
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {one_line(error)}")


def _command(words: Sequence[str]) -> None:
    """Run the command that the first word names; without a command, do a run."""
    if words[:1] and words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:])
        return
    if "--version" in words:
        sys.stdout.write(f"saematch {__version__}\n")
        return
    if {"--help", "-h"} & set(words):
        from saematch.app.help import help_text

        sys.stdout.write(help_text())
        return
    if "query=bash" in words and not _complete_command():
        return
    config_dir, words = without_config_dir(words)
    words = options_first(words)
    check_choices([word for word in words if "=" in word and not word.startswith("-")])
    sys.argv[1:] = words if config_dir is None else ["--config-dir", str(config_dir), *words]
    run_once()


def _complete_command() -> bool:
    """Print the commands that complete the first word; return whether Hydra completes settings.

    Hydra's completion for bash sets ``COMP_LINE``. After a command that takes settings, Hydra
    completes the last word alone.
    """
    line = os.environ.get("COMP_LINE", "")
    program, *words = line.split(" ")
    if len(words) == 1:
        sys.stdout.write("".join(f"{n} " for n in COMMANDS if n.startswith(words[0])))
    if not words or words[0] not in COMMANDS:
        return True
    if words[0] not in ("reproduce", "spread", "sweep"):
        return False
    os.environ["COMP_LINE"] = rest = f"{program} {words[-1]}"
    os.environ["COMP_POINT"] = str(len(rest))
    return True


def continuation(words: Sequence[str]) -> str:
    """Return the command line that continues an interrupted command."""
    missing = []
    if words[:1] == ["sweep"]:
        missing = ["--resume"]
    elif Begun.config is not None and not any(word.startswith("run_id=") for word in words):
        missing = [f"run_id={Begun.config.run_id}"]  # the default differs each time
    missing = [word for word in missing if word not in words]
    return shlex.join([*_program(), *words, *missing])


def _program() -> list[str]:
    """Return the words that started this program, such as ``.venv/bin/python -m saematch``."""
    script = Path(sys.argv[0])
    if script.stem != "saematch":
        return [sys.orig_argv[0], "-m", "saematch"]
    return ["saematch" if shutil.which("saematch") == str(script) else str(script)]

"""Folders of runs: their names, and locks that let one process write into each."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import FileLock, Timeout

from saematch.core.errors import FileError, InputError
from saematch.core.files import make_folder, replacing, write_json
from saematch.runs.resuming import refuse_other_run

LOG = "saematch.log"
"""Name of the log in a run's folder."""
MAX_NAME = 100
"""Largest number of characters of a name. An artifact of W&B is called ``matches-<run>``, and W&B
allows 128 characters."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_QUOTED = "\"run_id='12e4567'\""
_LOCK, _WRITER = ".lock", ".writer"


def new_run_id() -> str:
    """Return the default name of a run: the time, and 8 random hexadecimal digits.

    Names sort by time. The digits distinguish runs that start in the same second.
    """
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{token_hex(4)}"


def check_name(setting: str, value: object) -> str:
    """Return the name of a folder that ``setting`` gives; ``InputError`` if the name is not safe.

    A whole number becomes its digits, since the configuration parses ``run_id=3`` as a number.
    """
    name = str(value) if type(value) is int else value
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InputError(
            f"{setting}={value!r:.120}: a name has 1 to {MAX_NAME} characters, each an English "
            "letter, a digit, '.', '_' or '-', and begins with a letter, a digit or '_'"
            + (f". Quote a name that looks like a number: {_QUOTED}" * isinstance(value, float))
        )
    return name


def run_folder(name: object, run_id: object) -> Path:
    """Return the folder of a run, ``outputs/<name>/<run_id>``.

    Raises ``InputError`` if one of them, or the variable ``WANDB_RUN_ID``, is not a valid name.
    """
    if "WANDB_RUN_ID" in os.environ:
        check_name("WANDB_RUN_ID", os.environ["WANDB_RUN_ID"])
    return Path("outputs", check_name("name", name), check_name("run_id", run_id))


@dataclass
class Claim:
    """Claim of a run on its folder."""

    kept: bool
    """Whether the folder contains work to keep, from an earlier start or from this start."""


@contextmanager
def claimed(folder: Path, settings: dict[str, Any]) -> Iterator[Claim]:
    """Lock the folder for this process, and write the run's settings to ``run.json`` in it.

    The lock ends when the process ends, also if it is killed. A run that raises before it sets
    ``kept`` leaves the folder unchanged. Raises ``InputError`` if another process has locked the
    folder, or if the folder belongs to a run with other settings.
    """
    created = not folder.exists()
    make_folder(folder)
    lock = _locked(folder)
    try:
        refuse_other_run(folder, settings)
        claim = Claim(kept=(folder / "run.json").exists())
        try:
            with replacing(folder / _WRITER) as part:
                part.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            if not claim.kept:
                write_json(folder / "run.json", settings)
            yield claim
        except Exception:
            if not claim.kept:
                for name in ("run.json", _LOCK):
                    (folder / name).unlink(missing_ok=True)
            raise
        finally:
            (folder / _WRITER).unlink(missing_ok=True)
    finally:
        lock.release()
        if created:
            remove_unused(folder)


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        try:
            writer = (folder / _WRITER).read_text()
        except OSError:
            writer = "another process"
        raise InputError(
            f"{folder} is being written by {writer}: choose another run_id, or wait until it ends"
        ) from None
    except OSError as error:
        raise FileError(f"{folder} cannot be locked: {error.strerror or error}") from error
    return lock


def is_held(folder: Path) -> bool:
    """Whether a process has locked the folder, on this machine or another."""
    try:
        _locked(folder).release()
    except ValueError:
        return True
    return False


def remove_unused(folder: Path) -> None:
    """Remove the folder of an attempt if it contains nothing but its log."""
    with suppress(OSError):
        if all(path.name == LOG for path in folder.iterdir()):
            (folder / LOG).unlink(missing_ok=True)
            folder.rmdir()


class LogFile(logging.FileHandler):
    """Log file, created with its first line. If it cannot be written, the run continues without."""

    def __init__(self, filename: str | Path) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print once that the log cannot be written, and write nothing more."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        with suppress(OSError):  # its buffer cannot be written either
            self.close()
        reason = error.strerror or error
        sys.stderr.write(f"{self.baseFilename} cannot be written ({reason}): the log ends here\n")

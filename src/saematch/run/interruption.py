"""Signals that end the command line in an orderly way, and what is recorded of them.

SIGTERM comes from a scheduler, SIGINT from Ctrl-C, SIGHUP from a terminal that was closed. Python
handles a signal between two steps of its own code, so a library's call in progress ends first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saematch.core.results import Results
from saematch.run.run_folders import is_held

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""The signals that end a run; Windows has no SIGHUP."""
ECHO_SECONDS = 1.0
"""A signal so soon after the first is the same request: process groups and parents both send it."""


class Interrupted(BaseException):
    """A signal ends this process.

    It is no ``KeyboardInterrupt``, since Lightning turns that into ``sys.exit(1)``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """What shells report of a process that a signal has ended."""

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.args[0]).name}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` in the block at the first signal; end the process at the second.

    A signal that is ignored already, as under ``nohup``, or that has a handler of its own, as in a
    job of submitit, is left alone. Threads other than the main one cannot handle signals.
    """
    first: float | None = None

    def end(number: int, _: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise Interrupted(number)
        if time.monotonic() - first > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    unhandled = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in before if before[number] in unhandled]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def interruption(error: BaseException) -> BaseException | None:
    """Return what interrupted the process: ``error``, or what came before it; None for a failure.

    Libraries raise errors of their own while an interruption ends them.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Interrupted):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None and not isinstance(error, Exception) else cause


def said_of(cause: BaseException) -> str:
    """Return the text that ``results.json`` gets as the error of an interrupted run."""
    return (
        str(cause) if isinstance(cause, Interrupted) else f"interrupted by {type(cause).__name__}"
    )


def record_interruption(
    folder: Path, name: str, overrides: Sequence[str], cause: BaseException
) -> None:
    """Give a run that is at work, or that has not begun to, the status ``interrupted``.

    A run that is finished, or has failed by itself, is left as it is.
    """
    path = folder / "results.json"
    results = (
        Results.load(path) if path.exists() else Results(name, {"overrides": [*overrides]}, {})
    )
    if results.status == "running":
        results.status, results.error = "interrupted", said_of(cause)
        results.save(path)


def record_killed(folder: Path, cause: BaseException) -> None:
    """Record the interruption of the jobs in ``folder`` whose processes have ended with this one.

    Jobs on a cluster go on.
    """
    for path in folder.glob("*/results.json"):
        if not is_held(path.parent):
            record_interruption(path.parent, path.parent.name, (), cause)

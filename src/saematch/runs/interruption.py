"""Signals that end the command line in an orderly way, and the record of the interruption.

SIGTERM comes from a scheduler, SIGINT from Ctrl-C, SIGHUP from a terminal that was closed. Python
handles a signal between two steps of its own code, so a library call in progress ends first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saematch.core.results import Results
from saematch.runs.run_folders import is_held

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""Signals that end a run; Windows has no SIGHUP."""
ECHO_SECONDS = 1.0
"""Seconds after the first signal in which further signals count as the same request: a process
group and a parent process may both send one."""


class Interrupted(BaseException):
    """Exception of a signal that ends this process.

    It is not a ``KeyboardInterrupt``, since Lightning turns that into ``sys.exit(1)``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """Exit code that shells report for a process that a signal has ended."""

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.args[0]).name}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` in the block at the first signal; end the process at the second.

    Signals that are already ignored, as under ``nohup``, or that have their own handler, as in a
    job of submitit, are left alone. Threads other than the main thread cannot handle signals.
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
    """Return the interruption that caused ``error``, or ``error`` itself; None for a failure.

    A library that is interrupted may raise its own error, whose cause is the interruption.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Interrupted):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None and not isinstance(error, Exception) else cause


def interruption_text(cause: BaseException) -> str:
    """Return the error of an interrupted run, as ``results.json`` states it."""
    return (
        str(cause) if isinstance(cause, Interrupted) else f"interrupted by {type(cause).__name__}"
    )


def record_interruption(
    folder: Path, name: str, overrides: Sequence[str], cause: BaseException
) -> None:
    """Give a run that is running or has not started the status ``interrupted``.

    The status of a run that has finished or failed does not change.
    """
    path = folder / "results.json"
    results = (
        Results.load(path) if path.exists() else Results(name, {"overrides": [*overrides]}, {})
    )
    if results.status == "running":
        results.status, results.error = "interrupted", interruption_text(cause)
        results.save(path)


def record_killed(folder: Path, cause: BaseException) -> None:
    """Record the interruption of the jobs in ``folder`` whose processes ended with this process.

    Jobs on a cluster continue.
    """
    for path in folder.glob("*/results.json"):
        if not is_held(path.parent):
            record_interruption(path.parent, path.parent.name, (), cause)

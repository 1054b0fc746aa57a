"""Progress of a run: one bar on a terminal; lines in the log for each stage."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

REFRESH = 0.1
"""Seconds between two drawings of a bar."""
WORTH_A_LINE = 1.0
"""Seconds that a stage takes at least for a line in the log."""
WORTH_AN_ESTIMATE = 60.0
"""Seconds after which a stage without a bar logs the time left, if that is as long."""
LONGEST_SILENCE = 600.0
"""Largest number of seconds between two such lines."""
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
ONLY_IN_FILE = {"only_in_file": True}
"""The argument ``extra`` of a log call whose text the console already shows."""


class Bar:
    """Progress of a stage, or of work inside a stage.

    A terminal or notebook shows one bar, for the outermost stage. Work inside the stage appears
    after the time left, as ``auction 3/12``. A bar can be sent to another process, which continues
    it.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.unit = title, unit
        self.total = total
        """Number of units; None if it is not known."""
        self.done = 0
        self.n_skipped = 0
        """Number of units that earlier runs have done."""
        self.note = ""
        """Remark after the time left."""
        self.is_shown = _is_watched() and current_process().name == "MainProcess"
        self.started = time.time()
        self._next_estimate = math.inf if self.is_shown else WORTH_AN_ESTIMATE
        """Seconds after the start at which the next estimate is logged."""
        self._tqdm: tqdm | None = None
        self._drawn = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tqdm": None}

    def advance(self, n: int = 1) -> None:
        """Add finished units."""
        self.done += n
        self.draw()

    def skip(self, n: int) -> None:
        """Take units that earlier runs have done from the total."""
        self.n_skipped += n
        if self.total is not None:
            self.total -= n

    def remark(self, text: str) -> None:
        """Show a remark after the time left."""
        self.note = text
        self.draw()

    def draw(self) -> None:
        """Show the state of the outermost bar, at most every ``REFRESH`` seconds."""
        outer = open_bars[0] if open_bars else self
        if outer.is_shown:
            outer._refresh([bar for bar in open_bars if bar is not outer])
        else:
            outer._estimate()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._tqdm is not None:
            self._tqdm.close()

    def _refresh(self, inner: list[Bar]) -> None:
        now = time.time()
        if now - self._drawn < REFRESH:
            return
        self._drawn = now
        if self._tqdm is None:
            self._tqdm = tqdm(total=self.total, desc=self.title, leave=False, bar_format=FORMAT,
                              dynamic_ncols=True, file=sys.stderr)  # fmt: skip
            self._tqdm.start_t = self.started
        self._tqdm.n, self._tqdm.total = self.done, self.total
        inside = [f"{bar.title} {bar.done:,}/{bar.total or '?'}" for bar in inner]
        self._tqdm.set_postfix_str(", ".join(filter(None, [self.note, *inside])), refresh=False)
        self._tqdm.refresh()

    def _estimate(self) -> None:
        """Log how much time is left, for a stage that takes minutes; rarer, the longer it takes."""
        elapsed = time.time() - self.started
        if elapsed < self._next_estimate or not self.done or self.total is None:
            return
        self._next_estimate = elapsed + min(elapsed, LONGEST_SILENCE)
        left = elapsed / self.done * (self.total - self.done)
        if left >= WORTH_AN_ESTIMATE:
            log.info("%s: %s of %s after %s, about %s left", self.title, f"{self.done:,}",
                     counted(self.total, self.unit), duration(elapsed), duration(left))  # fmt: skip

    def log_end(self) -> None:
        """Log what the stage did, and its time."""
        elapsed = time.time() - self.started
        if elapsed >= WORTH_A_LINE or self.n_skipped:
            skipped = f" ({self.n_skipped:,} stored before)" if self.n_skipped else ""
            log.info("%s: %s in %s%s", self.title, counted(self.done, self.unit),
                     duration(elapsed), skipped)  # fmt: skip


def _is_watched() -> bool:
    """Return whether the error stream is a terminal or the output of a notebook's cell."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


open_bars: list[Bar] = []
"""Bars of this process that are not finished, the outermost first."""


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Bar]:
    """Show the progress of a stage while it runs; log what it did at its end.

    ``unit`` is a noun for one of the ``total`` units of work. Only the outermost stage is logged.
    Without a terminal, and in the processes of a sweep, there is no bar.
    """
    bar = Bar(title, total, unit)
    open_bars.append(bar)
    try:
        bar.draw()
        yield bar
    finally:
        del open_bars[open_bars.index(bar) :]
        bar.close()
    if not open_bars:
        bar.log_end()


@contextmanager
def progress_inside(title: str, total: int | None) -> Iterator[Bar]:
    """Show the progress of work inside a stage; without a stage, show nothing."""
    bar = Bar(title, total, "")
    if not open_bars:
        bar.is_shown, bar._next_estimate = False, math.inf
        yield bar
        return
    open_bars.append(bar)
    try:
        yield bar
    finally:
        if bar in open_bars:  # the stage may have ended before a generator that it read
            del open_bars[open_bars.index(bar) :]


def counted(n: int, noun: str) -> str:
    """Return ``1 batch`` or ``1,200 batches``."""
    ending = "es" if noun.endswith(("ch", "s")) else "s"
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def duration(seconds: float) -> str:
    """Return seconds as ``43 s``, ``1 min 7 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Console(logging.StreamHandler):
    """Log on the console, above the bar. It leaves out records that belong in the log file only.

    ``job`` is the number of a sweep's job, from 0. Lines of jobs in several processes begin with
    the job's number, from 1.
    """

    def __init__(self, stream: TextIO | None = None, job: int | None = None) -> None:
        super().__init__(stream)
        in_parallel = current_process().name != "MainProcess"
        self._prefix = f"[{job + 1}] " if job is not None and in_parallel else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; a heading, which begins with an empty line, has no number."""
        text = super().format(record)
        return text if text.startswith("\n") else self._prefix + text

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record and draw the bar again."""
        if getattr(record, "only_in_file", False):
            return
        bar = open_bars[0]._tqdm if open_bars else None
        if bar is not None:
            bar.clear()
        super().emit(record)
        if bar is not None:
            bar.refresh()

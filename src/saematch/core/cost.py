"""The time and the memory that a piece of work takes."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_MIB = 1024
"""KiB in a MiB; Linux states memory in KiB."""
_peaks: list[float] = []
"""Peak before each restart of the record, in KiB, for outer work that is being measured."""


@dataclass(frozen=True)
class Cost:
    """Time and memory of a piece of work."""

    seconds: float
    memory: float | None
    """Largest resident memory of the process during the work, minus that at its start, in MiB; None
    where the system does not measure it."""

    def then(self, later: Cost) -> Cost:
        """Return the cost of this work and of later work: the sum of times, the larger peak."""
        both = self.memory is not None and later.memory is not None
        memory = max(self.memory or 0.0, later.memory or 0.0) if both else None
        return Cost(self.seconds + later.seconds, memory)


@dataclass(frozen=True)
class Meter:
    """Measures the cost of work from ``start`` to ``cost``, also that of other threads."""

    started: float
    resident: float | None
    """Resident memory at the start, in KiB; None where the system does not measure the peak."""
    n_peaks: int
    """Number of restarts of the record before the start, which includes its own."""

    @classmethod
    def start(cls) -> Meter:
        """Start to measure.

        On Linux, the system restarts its record of the largest resident memory (proc(5),
        ``clear_refs``). Memory that was freed before is first returned to the system, or else the
        work would use it unseen.
        """
        _trim()
        peak = restart_peak()
        if peak is None:
            return cls(time.perf_counter(), None, 0)
        _peaks.append(peak)
        return cls(time.perf_counter(), _kib("VmRSS"), len(_peaks))

    def cost(self) -> Cost:
        """Return the cost since the start, with that of work that another meter measured within."""
        seconds = time.perf_counter() - self.started
        peak = None if self.resident is None else _kib("VmHWM")
        if peak is None or self.resident is None:
            return Cost(seconds, None)
        peak = max(peak, *_peaks[self.n_peaks :], self.resident)
        return Cost(seconds, (peak - self.resident) / _MIB)


def _trim() -> None:
    """Return freed memory to the system, with glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def restart_peak() -> float | None:
    """Restart the record of the largest resident memory; return its value before, in KiB.

    None if the system has no such record.
    """
    try:
        peak = _kib("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak


def _kib(field: str) -> float | None:
    """Return a field of the process's status in KiB; None if the system does not state it."""
    stated = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return float(stated[1]) if stated else None

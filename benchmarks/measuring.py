"""Time and memory, measured for work and its peer in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """A value, the value that it is compared with, and their ratio."""

    ours: float
    peer: float
    ratio: float
    unit: str = "s"


def in_turn(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> Measured:
    """Return the medians of the seconds and of the ratios; each ratio is of two successive runs."""
    seconds = [(timed(ours), timed(peer)) for _ in range(repeats)]
    return Measured(
        median(a for a, _ in seconds),
        median(b for _, b in seconds),
        median(a / b for a, b in seconds),
    )


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak of this process's resident memory during the work, minus that before it."""
    reset_peak()
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return this process's resident memory in bytes: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Reset ``VmHWM`` to the memory that is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def product(x: Tensor, y: Tensor) -> None:
    """Compute ``x @ y.T`` in blocks of 1,024 rows; each block overwrites the one before it."""
    out = torch.empty(1024, len(y))
    for k in range(0, len(x), 1024):
        torch.mm(x[k : k + 1024], y.T, out=out[: len(x[k : k + 1024])])

"""Memory: reuse of freed memory, which makes a CPU faster, and errors of failed allocations."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from saematch.core.errors import InputError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Make glibc keep up to 1 GiB of freed memory and allocate in steps of 256 MiB.

    Every block of a language model frees large arrays and allocates new ones. By default glibc
    returns each array to the system, which then clears every page of the next one. On two cores
    this took a tenth of the time, and half of it while other jobs ran (SmolLM2 135M, 4,096 tokens
    at a time). Without Linux and glibc, nothing changes.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_TOP_PAD, 2**28)


SHORTAGES = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED",
             "not enough memory")  # fmt: skip
"""Phrases in the errors of failed allocations, from PyTorch, CUDA libraries and the system."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is a failed allocation, on a device or in main memory.

    PyTorch has an error class for devices only; its CPU allocator raises ``RuntimeError``.
    """
    if isinstance(error, RuntimeError | OSError):
        return any(sign in str(error) for sign in SHORTAGES)
    return isinstance(error, MemoryError)


@contextmanager
def memory_shortage(task: str, remedy: str) -> Iterator[None]:
    """Raise ``InputError`` with ``remedy`` if the block or decorated function runs out of memory.

    If the system kills the process for lack of memory, there is no message.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{task}: out of memory ({reason}): {remedy}") from error

"""Memory: keeping what was freed, which decides the speed on a CPU, and running out of it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from saematch.core.errors import InputError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB that was freed, and take memory in steps of 256 MiB.

    Every block of a language model frees large arrays and takes new ones. As it comes, glibc hands
    each back to the system, which then clears every page of the next one. On two cores that took a
    tenth of the time, and half of it beside other jobs (SmolLM2 135M, 4,096 tokens at a time).
    Elsewhere than on Linux with glibc nothing is changed.
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
"""Words of PyTorch, CUDA's libraries and the system about an allocation that failed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a device or in the main memory.

    PyTorch has a class for devices only; its allocator for the CPU raises ``RuntimeError``.
    """
    if isinstance(error, RuntimeError | OSError):
        return any(sign in str(error) for sign in SHORTAGES)
    return isinstance(error, MemoryError)


@contextmanager
def memory_shortage(task: str, remedy: str) -> Iterator[None]:
    """Raise ``InputError`` with the remedy if the block, or the decorated function, lacks memory.

    A process that the system kills for its memory says nothing: that cannot be caught.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{task}: out of memory ({reason}): {remedy}") from error

"""How the C library keeps memory that was freed, which decides the speed of models on a CPU."""

from __future__ import annotations

import ctypes
import sys

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

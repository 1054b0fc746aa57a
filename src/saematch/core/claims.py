"""Claims on units of work that several processes share; a unit makes one or more kept files.

A process claims a unit by a lock, does the unit, and writes its files. Other processes do other
units meanwhile. The system releases the locks of a process that ends, also of a killed one, so that
another process can claim its unit. Locks only save work: files are replaced as a whole, so a unit
that two processes do is right too. Without ``sharing``, claims cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from saematch.core.files import make_folder
from saematch.core.store import is_kept, key_of

_locks: ContextVar[Path | None] = ContextVar("_locks", default=None)


@contextmanager
def sharing(locks: Path) -> Iterator[None]:
    """Share the work of the block with all processes that use the same folder of locks."""
    make_folder(locks)
    token = _locks.set(locks)
    try:
        yield
    finally:
        _locks.reset(token)


def is_sharing() -> bool:
    """Return whether this process shares its work with others."""
    return _locks.get() is not None


def lock_of(path: Path) -> str | None:
    """Return the lock file of the unit that writes ``path``; None if no work is shared."""
    folder = _locks.get()
    return None if folder is None else str(folder / f"{key_of(path).replace('/', '-')}.lock")


@contextmanager
def claim(lock: str | None, wait: bool = False) -> Iterator[bool]:
    """Claim a unit for the block; yields whether this process has it.

    If another process has the unit, ``wait`` waits until that process ends the unit or is killed.
    """
    file_lock = None if lock is None else FileLock(lock, timeout=-1 if wait else 0)
    try:
        if file_lock is not None:
            file_lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if file_lock is not None:
            file_lock.release()


def do_together(units: Mapping[Path, Callable[[], object]]) -> None:
    """Do the units whose files are missing, while other processes do some of them.

    ``units`` has the work that writes each file. When this function returns, each file was written
    by this process or another.
    """
    for wait in (False, True):
        for path, work in units.items():
            if is_kept(path):
                continue
            with claim(lock_of(path), wait) as ours:
                if ours and not is_kept(path):
                    work()

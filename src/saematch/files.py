"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path


def _shipped(name: str) -> Path:
    """Return a folder that lies beside ``src`` in a checkout and inside an installed wheel."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parents[1] / name


PRESETS = _shipped("conf")
"""Absolute, so that a checkout, an installed wheel and the console script all find it."""
SWEEPS = _shipped("sweeps")

MEASURING = ("data", "evals", "lm", "matching", "sae")
"""Folders of the code that matches features and evaluates matches on texts."""


@contextmanager
def replacing(path: Path, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it if the block ends without error.

    No other process, thread or machine gets the same temporary path. With ``keep``, a file that
    another run has put there meanwhile stays: for what is the same whoever writes it, since on a
    shared file system a file that is replaced is lost to those who are reading it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        if not (keep and path.exists()):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


ABANDONED_SECONDS = 86_400.0
"""Age from which a temporary file belongs to a process that was killed, on whatever machine."""


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders that killed processes left in a folder, once a process."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # another process may remove it too, or it is another user's
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def hashed(parts: list) -> str:
    """Return a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def content_hash(paths: Sequence[Path]) -> str:
    """Return ``sha256:`` and a hash of the files' content, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return f"sha256:{digest.hexdigest()[:16]}"


@cache
def code_hash(folders: tuple[str, ...] = MEASURING) -> str:
    """Return a hash of the code in folders of the package, and of the libraries that it rests on.

    By default of all on which matches and sums over texts depend.
    """
    package = Path(__file__).parent
    parts = [version("torch"), version("transformers")]
    for folder in folders:
        for path in sorted((package / folder).rglob("*.py")):
            parts.append(path.read_text(encoding="utf-8"))
    return hashed(parts)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON; NaN is refused, since JSON has none."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")

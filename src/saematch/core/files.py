"""Reading and writing files; readers never see a partly written file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

from saematch.core.errors import FileError, InputError

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the package."""


def _shipped(name: str) -> Path:
    """Return a folder that is next to ``src`` in a checkout and inside an installed wheel."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parents[1] / name


PRESETS = _shipped("conf")
"""Folder of the presets. Absolute, so that checkouts, wheels and the console script find it."""
SWEEPS = _shipped("sweeps")

_AGAIN = "free some space and run the same command again"
_REMEDIES = {
    errno.ENOSPC: _AGAIN,
    errno.EDQUOT: _AGAIN,
    errno.EFBIG: "raise the limit (ulimit -f) and run the same command again",
    errno.EROFS: "choose another folder",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EIO: "check the disk",
}
"""Advice for a file that cannot be written, by the system's error number."""


@contextmanager
def replacing(path: Path, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it if the block ends without error.

    No other process, thread or machine gets the same temporary path. If another run has written
    ``path`` in the meantime and ``keep`` accepts that file, it stays: on a shared file system,
    processes that are reading a file lose it when it is replaced. The file's permissions follow the
    umask, whichever library writes it. Raises ``FileError``, which names ``path``, if the file
    cannot be written, for example because the disk is full.
    """
    part = _part(path)
    with _naming(path, part):
        make_folder(path.parent)
        _remove_abandoned(path.parent)
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            if (
                part.stat().st_mode != mode
            ):  # safetensors makes files that only their owner can read
                part.chmod(mode)
            if keep is None or not keep(path):
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder; rename it to ``folder`` if the block ends without error.

    Permissions and errors are those of ``replacing``. An older ``folder`` is removed.
    """
    part = _part(folder)
    with _naming(folder, part):
        make_folder(part)
        _remove_abandoned(folder.parent)
        try:
            mode = part.stat().st_mode & 0o666
            yield part
            for path in part.rglob("*"):
                if path.is_file():
                    path.chmod(mode)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _naming(path: Path, part: Path) -> Iterator[None]:
    """Raise ``FileError`` that names ``path`` if the block cannot write its ``part``.

    Other errors pass, such as those of files that the block reads or of servers that it asks.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        named = getattr(error, "filename", None)
        ours = number in _REMEDIES if named is None else str(named).startswith(str(part))
        if number is None or not ours or isinstance(error, FileError):
            raise
        remedy = _REMEDIES.get(number, "choose another folder")
        raise unwritable(path, os.strerror(number), remedy) from error


@contextmanager
def reading(path: Path, content: str = "") -> Iterator[None]:
    """Raise ``FileError`` that names ``path`` if the block cannot read it.

    Folders, devices and pipes are refused before the block opens them. ``content`` names the
    content in messages, such as ``the texts in``.
    """
    subject = f"{content} {path}".strip()
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise FileError(f"cannot read {subject}: it is {kind}")
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {subject}: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; raises ``FileError`` if the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
        raise unwritable(folder, error.strerror or str(error), remedy) from error


def unwritable(path: Path, reason: str, remedy: str = _AGAIN) -> FileError:
    """Return a ``FileError`` for a path that cannot be written."""
    return FileError(f"{path} cannot be written ({reason}): {remedy}")


def _error_number(error: OSError | SafetensorError) -> int | None:
    """Return the system's error number; safetensors gives it only in the message."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


MAX_NAME = 255
"""Largest number of bytes in the name of a file or folder."""


def check_path(setting: str, path: str | Path) -> None:
    """Raise ``InputError`` for a path that no file system allows."""
    text = str(path)
    if "\0" in text or any(len(os.fsencode(name)) > MAX_NAME for name in text.split("/")):
        raise InputError(
            f"{setting}={text!r:.80} is not a valid path: each name in it may have at most "
            f"{MAX_NAME} bytes and no zero byte"
        )


def expand_home(spec: object, field: str) -> None:
    """Replace a leading ``~`` in a frozen spec's path or list of paths.

    Raises ``InputError`` for a path that no file system allows.
    """

    def at_home(path: Any) -> Any:
        if not isinstance(path, str):
            return path
        check_path(field, path)
        return os.path.expanduser(path)  # noqa: PTH111 - for patterns too

    value = getattr(spec, field)
    paths = isinstance(value, Sequence) and not isinstance(value, str)
    object.__setattr__(spec, field, [at_home(path) for path in value] if paths else at_home(value))


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text; raises ``json.JSONDecodeError`` if it is not JSON.

    Text that is nested too deeply for Python's parser, or has numbers of thousands of digits,
    raises the same error.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(str(error).partition(";")[0], "", 0) from error


ABANDONED_SECONDS = 86_400.0
"""Age at which a temporary file from another host counts as abandoned."""

_PART = re.compile(r"\..+\.([0-9a-f]{12})-(\d+)-[0-9a-f]{32}\.part")
"""Names of our temporary files and folders, with the host and the process."""


@cache
def _host() -> str:
    """Return a hash of the running system in which a process number is unique.

    Containers may share a host name and a disk, but not process numbers.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):  # not on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashed(parts)[:12]


def _part(path: Path) -> Path:
    """Return a temporary path next to ``path`` that names host and process."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex}.part")


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders of killed processes, once in the life of a process.

    A process on another host may still be running, so its files stay for a day.
    """
    for part in folder.glob(".*.part"):
        named = _PART.fullmatch(part.name)
        if named is None:
            continue
        ended = named[1] == _host() and not psutil.pid_exists(int(named[2]))
        with suppress(
            OSError
        ):  # another process may remove it first, or it belongs to another user
            if ended or time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def hashed(parts: list) -> str:
    """Return a hash of a list of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def content_hash(paths: Sequence[Path]) -> str:
    """Return ``sha256:`` and a hash of the content of the files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with reading(path), path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return f"sha256:{digest.hexdigest()[:16]}"


def read_json(path: Path, kind: type, remedy: str) -> Any:
    """Return the value of a JSON file, which must be of type ``kind`` (dict or list).

    Raises ``InputError``, which ends in ``remedy``, if the file is damaged.
    """
    try:
        with reading(path):
            value = parse_json(path.read_bytes())
    except FileError as error:
        if path.is_dir():
            raise InputError(f"{path} is damaged (it is a folder): {remedy}") from error
        raise
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, kind):
        actual = type(value).__name__
        raise InputError(
            f"{path} is damaged (it holds a {actual}, not a {kind.__name__}): {remedy}"
        )
    return value


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON; raises ``ValueError`` for NaN, which JSON lacks."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def readable_size(n_bytes: int) -> str:
    """Return a size in GiB, or in MiB below 1 GiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"

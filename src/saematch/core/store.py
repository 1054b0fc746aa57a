"""The one store: files that are kept between runs, each with its key and a digest inside.

A kept file is safetensors or JSON. Its header holds a key, which is the name of its folder and its
own, and the digest, which is the SHA-256 of all bytes of the file with zeros in the digest's place.
Any changed byte thus changes the digest. Names of files are hashes of all that determines their
content: the spec, the code (``saematch.core.code``) and the identity of all inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from saematch.core.errors import FileError, InputError
from saematch.core.files import replacing

log = logging.getLogger(__name__)

BLANK = "0" * 64
_DIGEST = re.compile(rb'"digest": ?"([0-9a-f]{64})"')


class DamagedError(InputError):
    """A kept file does not hold what was written; the message is the reason."""


def key_of(path: Path) -> str:
    """Return the key of a kept file: the names of its folder and its own, without the ending."""
    return f"{path.parent.name}/{path.stem}"


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str] | None = None,
    keep: bool = True,
) -> None:
    """Write tensors and facts with key and digest.

    With ``keep`` a whole file that is there stays, since another run wrote the same.
    """
    header = {**(facts or {}), "key": key_of(path), "digest": BLANK}
    with replacing(path, is_kept if keep else None) as part:
        save_file(dict(tensors), part, header)
        _seal(part, is_json=False)


def write_note(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts that JSON can hold with key and digest; an older note is replaced."""
    note = {"digest": BLANK, "key": key_of(path), **facts}
    with replacing(path) as part:
        part.write_text(json.dumps(note, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _seal(part, is_json=True)


def read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a kept file; None if there is none, or none that is whole."""
    return load_file(path) if is_kept(path) else None


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the facts of a note; None if there is none, or none that is whole."""
    if not is_kept(path):
        return None
    return {k: v for k, v in read_facts(path).items() if k not in ("key", "digest")}


def missing(paths: Sequence[Path]) -> list[int]:
    """Return the numbers of the files that are still to be made; see ``is_kept``."""
    return [number for number, path in enumerate(paths) if not is_kept(path)]


def is_kept(path: Path) -> bool:
    """Whether a file is there and whole; a warning names one that is damaged.

    A file under another name than its own is damaged too. The damaged file stays until ``write``
    replaces it, so that no run removes what another run has made again. A process reads each file
    only once for this, unless the file changes.
    """
    try:
        version = _version(path.stat())
        key = _checked(path, version)["key"]
    except FileNotFoundError:
        return False
    except DamagedError as error:
        _warn(path, version, str(error))
        return False
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if key != key_of(path):
        _warn(path, version, f"it is a copy of {key}")
        return False
    return True


@cache
def _warn(path: Path, _: _Version, reason: str) -> None:
    log.warning("%s is damaged (%s): its content is made again", path, reason)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts in the header of a whole file; ``DamagedError`` for any other file."""
    return dict(_checked(path, _version(path.stat())))


_Version = tuple[int, int, int]


def _version(state: os.stat_result) -> _Version:
    return state.st_ino, state.st_size, state.st_mtime_ns


@cache
def _checked(path: Path, _: _Version) -> dict[str, Any]:
    """Return the header of a file of one version, after a look at all of its bytes."""
    is_json = path.suffix == ".json"
    with path.open("rb") as file:
        digest = _digest(file, is_json)
        if digest.stated != digest.actual:
            raise DamagedError("its content has changed")
        file.seek(0 if is_json else 8)
        header = json.loads(file.read(digest.header_size))
    return header if is_json else header["__metadata__"]


class _Digest(NamedTuple):
    stated: bytes
    actual: bytes
    position: int
    """Where the file states it."""
    header_size: int


def _digest(file: BinaryIO, is_json: bool) -> _Digest:
    """Compute a file's digest, in little memory."""
    size = os.fstat(file.fileno()).st_size
    start = b"" if is_json else file.read(8)
    length = size if is_json else int.from_bytes(start, "little")
    if length > size - len(start):
        raise DamagedError("it is cut off or no safetensors file")
    header = start + file.read(length)
    stated = _DIGEST.search(header)
    if stated is None:
        raise DamagedError("it states no digest")
    begin, end = stated.span(1)
    computed = hashlib.sha256(header[:begin] + BLANK.encode() + header[end:])
    while block := file.read(2**20):
        computed.update(block)
    return _Digest(stated[1], computed.hexdigest().encode(), begin, length)


def _seal(path: Path, is_json: bool) -> None:
    """Put the digest of a file that was just written into it."""
    with path.open("r+b") as file:
        digest = _digest(file, is_json)
        file.seek(digest.position)
        file.write(digest.actual)

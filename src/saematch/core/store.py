"""The store: files that are kept between runs, each with its key and a digest inside.

A kept file is safetensors or JSON. Its header holds a key (the names of its folder and of the file)
and a digest: the SHA-256 of all bytes of the file, with zeros in place of the digest. So a change
of any byte changes the digest. File names are hashes of everything that determines the content: the
spec, the code (``saematch.core.code``) and the identity of all inputs.
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
    """A kept file whose content has changed since it was written; the message is the reason."""


def key_of(path: Path) -> str:
    """Return the key of a kept file: the names of its folder and of the file, without suffix."""
    return f"{path.parent.name}/{path.stem}"


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str] | None = None,
    keep: bool = True,
) -> None:
    """Write tensors and facts with key and digest.

    With ``keep``, an undamaged file that already exists stays, since another run wrote the same.
    """
    header = {**(facts or {}), "key": key_of(path), "digest": BLANK}
    with replacing(path, is_kept if keep else None) as part:
        save_file(dict(tensors), part, header)
        _seal(part, is_json=False)


def write_note(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON with key and digest; replaces an older note.

    A note with the same facts stays, so that a read-only folder can be used.
    """
    note = {"digest": BLANK, "key": key_of(path), **facts}
    text = json.dumps(note, indent=1, allow_nan=False) + "\n"
    if is_kept(path) and {**read_facts(path), "digest": BLANK} == json.loads(text):
        return
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
        _seal(part, is_json=True)


def read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a kept file; None if it is missing or damaged."""
    return load_file(path) if is_kept(path) else None


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the facts of a note; None if it is missing or damaged."""
    if not is_kept(path):
        return None
    return {k: v for k, v in read_facts(path).items() if k not in ("key", "digest")}


def missing(paths: Sequence[Path]) -> list[int]:
    """Return the positions of the paths that are missing or damaged; see ``is_kept``."""
    return [number for number, path in enumerate(paths) if not is_kept(path)]


def is_kept(path: Path) -> bool:
    """Return whether a file exists and is undamaged; logs a warning for a damaged file.

    A file that was renamed or copied counts as damaged. A damaged file stays until ``write``
    replaces it, so that no run removes a file that another run has just repaired. A process reads
    each file only once for this check, unless the file changes. Raises ``FileError`` if the file
    cannot be read.
    """
    try:
        version = _version(path.stat())
        key = _checked(path, version)["key"]
    except FileNotFoundError:
        return False
    except DamagedError as error:
        _warn(path, version, str(error))
        return False
    except OSError as error:  # the file of another user, or a folder
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if key != key_of(path):
        _warn(path, version, f"it is a copy of {key}")
        return False
    return True


@cache
def _warn(path: Path, _: _Version, reason: str) -> None:
    log.warning("%s is damaged (%s): its content is computed again", path, reason)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts in the header of a file; raises ``DamagedError`` if it is damaged."""
    return dict(_checked(path, _version(path.stat())))


_Version = tuple[int, int, int]


def _version(state: os.stat_result) -> _Version:
    return state.st_ino, state.st_size, state.st_mtime_ns


@cache
def _checked(path: Path, _: _Version) -> dict[str, Any]:
    """Return the header of one version of a file, after checking all of its bytes."""
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
    """Offset of the stated digest, in bytes."""
    header_size: int


def _digest(file: BinaryIO, is_json: bool) -> _Digest:
    """Return the digest of a file and the digest that it states; reads 1 MiB at a time."""
    size = os.fstat(file.fileno()).st_size
    start = b"" if is_json else file.read(8)
    length = size if is_json else int.from_bytes(start, "little")
    if length > size - len(start):
        raise DamagedError("it is truncated or not a safetensors file")
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
    """Write the digest into a file that was just written."""
    with path.open("r+b") as file:
        digest = _digest(file, is_json)
        file.seek(digest.position)
        file.write(digest.actual)

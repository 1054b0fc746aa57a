"""Data files of the page: arrays in classic scripts, which a page opened from disk can load."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from saematch.core.errors import InputError

MAX_BYTES = 4 * 2**20
"""Largest size of a data file."""

DIGITS = 3
"""Significant digits of numbers that are not whole."""
_NAN, _INFINITE = -(2**15), 2**15 - 1
"""Mantissas of NaN and of infinity; that of minus infinity is ``-_INFINITE``."""
_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\r": b"\\r"}

Parts = Mapping[str, np.ndarray | Sequence[Any] | Mapping[str, Any]]
"""Arrays by name; lists and mappings are stored as JSON."""


def packed(parts: Parts) -> bytes:
    """Return arrays and JSON values as a gzip stream, which ``store.js`` reads.

    The stream has the length of a header (32 bits, little-endian), the header (JSON: name, type and
    number of elements of each part) and the bytes of each part. The bytes of an array are sorted by
    their place in an element: first all first bytes, then all second bytes. They compress better.
    Numbers that are not whole are rounded (``decimals``): 16-bit mantissas, then 8-bit exponents.
    """
    header: list[tuple[str, str, int]] = []
    chunks: list[bytes] = []
    for name, part in parts.items():
        if not isinstance(part, np.ndarray):
            text = json.dumps(part, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            chunks.append(text.encode("utf-8", "replace"))
            header.append((name, "json", len(chunks[-1])))
        elif part.dtype.kind == "f":
            header.append((name, "decimal", part.size))
            chunks.extend(_planes(array) for array in decimals(part))
        else:
            header.append((name, part.dtype.name, part.size))
            chunks.append(_planes(part))
    start = json.dumps(header, separators=(",", ":")).encode()
    content = b"".join([len(start).to_bytes(4, "little"), start, *chunks])
    return gzip.compress(content, 6, mtime=0)


def _planes(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return array.view(np.uint8).reshape(array.size, array.itemsize).T.tobytes()


def decimals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers rounded to three significant digits: int16 mantissas and int8 exponents.

    A number is ``mantissa * 10 ** exponent``. The relative error is at most 0.5%. Numbers below
    ``1e-99`` become 0.
    """
    exact = np.asarray(values, np.float64)
    regular = np.isfinite(exact) & (np.abs(exact) > 1e-99)
    size = np.abs(np.where(regular, exact, 1))
    exponents = np.floor(np.log10(size)).astype(np.int64) - (DIGITS - 1)
    mantissas = np.where(regular, np.rint(np.sign(exact) * (size / 10.0**exponents)), 0)
    mantissas[np.isnan(exact)] = _NAN
    infinite = np.isinf(exact)
    mantissas[infinite] = np.sign(exact[infinite]) * _INFINITE
    return mantissas.astype(np.int16), np.where(regular, exponents, 0).astype(np.int8)


def quoted(content: bytes) -> bytes:
    """Return bytes as a JavaScript string of ASCII characters with 7 bits each.

    The last byte is the number of bytes that fill the last group of 7 bytes, itself included. The
    string has 18% more bytes than the content; base64 has 33% more. ASCII characters mean the same
    in every encoding that a server may announce.
    """
    n_filled = 7 - len(content) % 7
    filled = np.frombuffer(content + bytes(n_filled - 1) + bytes([n_filled]), np.uint8)
    groups = np.unpackbits(filled).reshape(-1, 7)
    characters = np.packbits(np.pad(groups, ((0, 0), (1, 0))), axis=1).tobytes()
    for character, escape in _ESCAPES.items():
        characters = characters.replace(character, escape)
    return b'"' + characters + b'"'


def write_parts(folder: Path, name: str, parts: Parts) -> None:
    """Write the data file ``<folder>/<name>.js`` of packed parts."""
    _write(folder, name, quoted(packed(parts)))


def write_object(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write the data file ``<folder>/<name>.js`` of a JSON object that needs no unpacking."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, also as JavaScript
    _write(folder, name, text.encode("ascii"))


def _write(folder: Path, name: str, value: bytes) -> None:
    path = folder / f"{name}.js"
    if ".." in path.parts or not path.is_relative_to(folder):
        raise InputError(f"{name!r:.120} cannot name a data file: results.json is damaged")
    path.parent.mkdir(parents=True, exist_ok=True)
    line = b"saematch.receive(%s,%s)\n" % (json.dumps(name).encode("ascii"), value)
    if len(line) > MAX_BYTES:
        raise ValueError(f"the data file {name} has {len(line)} bytes, over {MAX_BYTES}: split it")
    path.write_bytes(line)


def cut(costs: np.ndarray, most: int) -> list[slice]:
    """Cut a sequence into slices; the costs of a slice exceed ``most`` by less than one cost."""
    part = (np.cumsum(costs) - 1) // most
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(costs)]
    return [slice(start, stop) for start, stop in pairwise(edges) if stop > start]


def unsigned(values: np.ndarray) -> np.ndarray:
    """Return whole numbers from 0 in 8, 16 or 32 bits, whichever is enough."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))

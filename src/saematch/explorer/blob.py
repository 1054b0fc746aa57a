"""Data files of the page: arrays in classic scripts, which a page opened from disk can load."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 4 * 2**20
"""Largest size of a data file."""

Parts = Mapping[str, np.ndarray | Sequence[Any] | Mapping[str, Any]]
"""Arrays by name; lists and mappings are stored as JSON."""


def packed(parts: Parts) -> str:
    """Return arrays and JSON values as text: a gzip stream in base64, which ``store.js`` reads.

    The stream has the length of a header (32 bits, little-endian), the header (JSON: name, type and
    number of elements of each part) and the bytes of each part. The bytes of an array are sorted by
    their place in an element: first all first bytes, then all second bytes. They compress better.
    """
    header: list[tuple[str, str, int]] = []
    chunks: list[bytes] = []
    for name, part in parts.items():
        if isinstance(part, np.ndarray):
            array = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
            header.append((name, array.dtype.name, array.size))
            chunks.append(array.view(np.uint8).reshape(array.size, -1).T.tobytes())
        else:
            text = json.dumps(part, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            chunks.append(text.encode("utf-8", "replace"))
            header.append((name, "json", len(chunks[-1])))
    start = json.dumps(header, separators=(",", ":")).encode()
    content = b"".join([len(start).to_bytes(4, "little"), start, *chunks])
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def write_parts(folder: Path, name: str, parts: Parts) -> None:
    """Write the data file ``<folder>/<name>.js`` of packed arrays."""
    _write(folder, name, packed(parts))


def write_object(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write the data file ``<folder>/<name>.js`` of a JSON object that needs no unpacking."""
    _write(folder, name, value)


def _write(folder: Path, name: str, value: str | Mapping[str, Any]) -> None:
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, also as JavaScript
    path.write_text(f"saematch.receive({json.dumps(name)},{text})\n", encoding="ascii")


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers as float32 with a mantissa of ``bits`` bits, which compress better.

    The relative error is at most ``2 ** -(bits + 1)``. NaN and infinity do not change.
    """
    exact = np.asarray(values, np.float32)
    dropped = 23 - bits
    half = np.uint32(1 << (dropped - 1))
    mask = np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    with np.errstate(over="ignore"):
        near = ((exact.view(np.uint32) + half) & mask).view(np.float32)
    return np.where(np.isfinite(exact), near, exact)

"""Texts in files: plain text, JSON Lines, JSON and Parquet. The only file to read them with
``pyarrow``."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
"""Of the files that are taken from a folder."""


def find_files(entry: str) -> tuple[str, list[Path]]:
    """Return the files that a path, a folder or a pattern stands for, and a name for them.

    A pattern with ``*``, ``?`` or ``[...]`` is named by what stands before these, or by its folder.
    Raises ``ValueError`` if there are none.
    """
    path = Path(entry)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise ValueError(f"the folder {entry} holds no file ending in {', '.join(SUFFIXES)}")
        return path.resolve().name, found
    if path.is_file():
        return path.stem, [path]
    if not glob.has_magic(entry):
        raise ValueError(f"cannot read the texts in {entry}: there is no such file or folder")
    found = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())
    if not found:
        raise ValueError(f"no file is called like {entry}")
    before = re.split(r"[*?\[]", path.name)[0].strip("-_. ")
    return before or found[0].resolve().parent.name, found


def read_texts(path: Path, column: str = "text") -> list[str]:
    """Read all texts of a file.

    ``.jsonl`` has an object on each line, ``.json`` a list of objects, and ``.parquet`` rows, with
    the text in the field ``column``; any other file is plain text with an empty line between texts.
    Raises ``ValueError`` for a file that is missing, damaged, or without that field somewhere.
    """
    if path.suffix == ".parquet":
        return _parquet(path, column)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the texts in {path}: {error}") from error
    if path.suffix not in (".jsonl", ".json"):
        return [text for text in (part.strip() for part in content.split("\n\n")) if text]
    if path.suffix == ".json":
        rows = _json(content, str(path))
        if not isinstance(rows, list):
            raise ValueError(f"{path} is not a list of JSON objects")
        return [_text(row, column, f"{path}, entry {n}") for n, row in enumerate(rows, 1)]
    texts = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            texts.append(_text(_json(line, where), column, where))
    return texts


def _json(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is not JSON ({error})") from error


def _text(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object with a field {column!r}")
    if column not in row:
        raise ValueError(f"{where}: {_no_column(column, row)}")
    if not isinstance(row[column], str):
        raise ValueError(f"{where}: the field {column!r} is no text but {row[column]!r:.40}")
    return row[column]


def _parquet(path: Path, column: str) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            rows = file.read([column]).column(0).to_pylist() if column in columns else []
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read the texts in {path}: {error}") from error
    if column not in columns:
        raise ValueError(f"{path}: {_no_column(column, columns)}")
    return [_text({column: text}, column, f"{path}, row {n}") for n, text in enumerate(rows, 1)]


def _no_column(column: str, there: Iterable[str]) -> str:
    return f"no field {column!r}, only {', '.join(there)}: set dataset.column"

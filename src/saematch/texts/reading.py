"""Read texts from files of several types. The only module that reads texts with ``pyarrow``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from saematch.core.errors import InputError
from saematch.core.files import parse_json, reading


class Text(NamedTuple):
    """One text of a file."""

    content: str
    place: str
    """File and line, for messages."""


def read_texts(path: Path, column: str = "text") -> list[Text]:
    """Return all texts of a file in UTF-8, with or without a byte-order mark.

    - ``.jsonl`` and ``.ndjson``: one JSON object per line;
    - ``.json``: a list of JSON objects, one object, or one object per line;
    - ``.csv`` and ``.tsv``: rows below a line of column names, with Excel's quotes;
    - ``.parquet`` and ``.arrow`` (as ``save_to_disk`` writes them): rows;
    - any other suffix: plain text with an empty line between texts.

    In all types but plain text, the field ``column`` contains the text. Raises ``InputError`` with
    file and line if the file is missing, damaged or not a text file, if a row lacks the field, or
    if the field is not a text.
    """
    return _KINDS.get(path.suffix.lower(), _plain)(path, column)


def check_text(value: Any, column: str, place: str) -> str:
    """Return a field's value; ``InputError`` if it is not a text that UTF-8 can represent."""
    if not isinstance(value, str):
        kinds = {dict: "a JSON object", list: "a list", type(None): "null"}
        kind = kinds.get(type(value)) or f"{value!r:.40}"
        raise InputError(f"{place}: the field {column!r} is {kind}, not a text: set dataset.column")
    check_unicode(value, place)
    return value


def check_unicode(text: str, place: str) -> None:
    """Raise ``InputError`` for half of a surrogate pair, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start} of the text is half of a surrogate pair "
            f"(\\u{ord(text[error.start]):04x}), which Unicode text cannot contain: remove this "
            "text, or write the file with whole characters"
        ) from error


def _content(path: Path) -> str:
    try:
        with reading(path, "the texts in"):
            content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} {_NO_TEXT} ({error})") from error
    if "\0" in content or content.startswith(("{\\rtf", "%PDF-", "%!PS")):
        raise InputError(f"{path} {_NO_TEXT}")
    return content


_NO_TEXT = (
    "is not UTF-8 text: unpack a compressed file, save a document as .txt in UTF-8, and save a "
    "data set as .jsonl, .json, .csv, .tsv, .parquet or .arrow"
)


def _plain(path: Path, _column: str) -> list[Text]:
    content = _content(path).replace("\r\n", "\n").replace("\r", "\n")
    if _is_json(content.strip()):
        raise InputError(f"{path} contains JSON, not plain text: rename it to .jsonl or .json")
    texts, line = [], 1
    for part in content.split("\n\n"):
        if text := part.strip():
            start = line + part[: part.index(text)].count("\n")
            texts.append(Text(text, f"{path}, line {start}"))
        line += part.count("\n") + 2
    return texts


def _is_json(content: str) -> bool:
    """Return whether a text, or its first line, is a JSON object or a list of JSON objects."""
    if not content.startswith(("{", "[")):
        return False
    for candidate in (content, content.partition("\n")[0]):
        try:
            value = parse_json(candidate)
        except ValueError:
            continue
        first = value[0] if isinstance(value, list) and value else value
        return isinstance(first, dict)
    return False


def _json(path: Path, column: str) -> list[Text]:
    content = _content(path)
    try:
        value = parse_json(content)
    except ValueError as error:
        if content.lstrip().startswith("{"):  # or else one object a line
            return _json_lines(path, column)
        raise InputError(f"{path} is not JSON ({error})") from error
    rows = value if isinstance(value, list) else [value]
    return [_field(row, column, f"{path}, entry {n}") for n, row in enumerate(rows, 1)]


def _json_lines(path: Path, column: str) -> list[Text]:
    texts = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = parse_json(line)
            except ValueError as error:
                raise InputError(f"{place}: the line is not JSON ({error})") from error
            texts.append(_field(row, column, place))
    return texts


def _field(row: Any, column: str, place: str) -> Text:
    if not isinstance(row, dict):
        raise InputError(f"{place}: not a JSON object with a field {column!r}")
    if column not in row:
        raise InputError(f"{place}: {_no_column(column, row)}")
    return Text(check_text(row[column], column, place), place)


def _csv(path: Path, column: str) -> list[Text]:
    content = io.StringIO(_content(path), newline="")  # keeps line ends in cells
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    texts = []
    with _long_fields():
        rows = csv.reader(content, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            if names.count(column) != 1:
                raise InputError(f"{path}: {_no_column(column, names)}")
            where = names.index(column)
            line = rows.line_num + 1
            for row in rows:
                place = f"{path}, line {line}"
                if row and len(row) != len(names):
                    raise InputError(f"{place}: {len(row)} cells, but {len(names)} columns")
                if row:
                    texts.append(Text(row[where], place))
                line = rows.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}") from error
    return texts


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow cells of any length. The limit of Python's reader is one for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, column: str) -> list[Text]:
    from pyarrow import parquet

    def rows() -> tuple[list[str], list[Any]]:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            return names, file.read([column]).column(0).to_pylist() if column in names else []

    return _rows(path, column, rows)


def _arrow(path: Path, column: str) -> list[Text]:
    import pyarrow

    def rows() -> tuple[list[str], list[Any]]:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read_at(6, 0) == b"ARROW1"  # else a stream, as datasets writes
            reader = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source)
            names = reader.schema.names
            return names, reader.read_all()[column].to_pylist() if column in names else []

    return _rows(path, column, rows)


def _rows(path: Path, column: str, read: Callable[[], tuple[list[str], list[Any]]]) -> list[Text]:
    import pyarrow

    try:
        with reading(path, "the texts in"):
            names, rows = read()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the texts in {path}: {error}") from error
    if column not in names:
        raise InputError(f"{path}: {_no_column(column, names)}")
    places = [f"{path}, row {n}" for n in range(1, len(rows) + 1)]
    return [
        Text(check_text("" if value is None else value, column, place), place)  # as for the hub
        for value, place in zip(rows, places, strict=True)
    ]


def _no_column(column: str, names: Iterable[str]) -> str:
    shown = ", ".join(f"{name:.40}" for name in names)
    return f"no field {column!r}, only {shown}: set dataset.column"


_KINDS = {
    ".txt": _plain,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
SUFFIXES = tuple(_KINDS)
"""File types that are read from a folder."""

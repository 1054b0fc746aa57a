"""``results.json``: the results of a run and their provenance, for every table and figure."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json
from saematch.core.tables import Tables, rows_of

SCHEMA = 2
"""Version of the names in ``results.json``: its tables, columns and settings."""
WRITERS = {1: "0.1", SCHEMA: "0.2"}
"""Version of saematch that writes and reads each schema."""

_AGAIN = "delete the file, and the same command makes it again"


@dataclass(repr=False)
class Results:
    """The results of one run, which its stages fill."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    status: str = "running"
    """``running``, ``finished``, ``failed``, or ``interrupted`` by a signal."""
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Means by which runs are compared, by name."""
    tables: Tables = field(default_factory=Tables)
    """Tables, with the definitions of their metrics; the file has these under ``columns``."""
    folder: Path | None = field(default=None, compare=False)
    """Folder of the run, with its figures and matches; None for results without files. It is not
    written to the file."""

    def __repr__(self) -> str:
        tables = ", ".join(self.tables)
        return f"Results({self.name}, {self.status}; tables: {tables or 'none'})"

    def _repr_html_(self) -> str:
        """Return the summary and a row for each table, for notebooks."""
        return f"<p>{html.escape(repr(self))}</p>" + self.tables._repr_html_()

    def frame(self, name: str) -> pd.DataFrame:
        """Return a table; ``InputError`` with the existing names if the run has no such table."""
        if name not in self.tables:
            raise InputError(f"there is no table {name!r}: choose among {', '.join(self.tables)}")
        return self.tables[name]

    def save(self, path: str | Path) -> None:
        """Write ``results.json``; numbers that are not finite become null."""
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        content = values | {
            "columns": [_stored_definition(column) for column in self.tables.columns.values()],
            "tables": {name: rows_of(frame) for name, frame in self.tables.items()},
        }
        write_json(
            Path(path), {"schema": SCHEMA, **{n: _plain(value) for n, value in content.items()}}
        )

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read ``results.json``, given its path or the run's folder.

        Raises ``SchemaError`` if another version of saematch wrote the file, and ``InputError`` if
        it is damaged.
        """
        path = Path(path)
        if path.is_dir() and path.name != "results.json":
            path /= "results.json"
        content = read_json(path, dict, _AGAIN)
        _check_schema(path, content.pop("schema", 1))
        wrong = _of_wrong_type(content)
        if wrong:
            raise InputError(f"{path} is damaged ({wrong[0]} has the wrong type): {_AGAIN}")
        try:
            columns = [_definition(column) for column in content.pop("columns", [])]
            content["tables"] = Tables.of(content.get("tables", {}), columns)
            return cls(**content, folder=path.parent)
        except TypeError as error:  # a name is missing or unknown
            raise InputError(f"{path} is damaged ({error}): {_AGAIN}") from error


def results_path(folder: Path) -> Path:
    """Return the path of the results of the run in ``folder``.

    Raises ``InputError`` if there are none; the error names the newest run near the folder.
    """
    path = folder / "results.json"
    if path.exists():
        return path
    problem = "has no results.json" if folder.exists() else "does not exist"
    start = folder if folder.is_dir() else folder.parent
    runs = [
        file for depth in ("*", "*/*", "outputs/*/*") for file in start.glob(f"{depth}/{path.name}")
    ]
    newest = max(runs, key=lambda file: file.stat().st_mtime, default=None)
    example = (
        "outputs/match/<run_id>" if newest is None else f"the newest one here, {newest.parent}"
    )
    raise InputError(f"{folder} {problem}: name the folder of a run, such as {example}")


class SchemaError(InputError):
    """Error for results that another version of saematch wrote, with other names."""


def _check_schema(path: Path, schema: Any) -> None:
    """Raise ``SchemaError`` for results of another schema; files of version 0.1 state no schema."""
    if schema == SCHEMA:
        return
    written = WRITERS.get(schema) if type(schema) is int else None
    reader = f"saematch {written} reads it" if written else "a later saematch may read it"
    raise SchemaError(
        f"{path} has schema {schema!r:.40} and this saematch reads schema {SCHEMA}: {reader}; or "
        "run again with another run_id or folder"
    )


_KINDS = {
    "name": str, "config": dict, "provenance": dict, "status": str, "error": str | None,
    "metrics": dict, "columns": list, "tables": dict,
}  # fmt: skip


def _of_wrong_type(content: dict[str, Any]) -> list[str]:
    """Return the names of values whose type differs from those that ``Results.save`` writes."""
    wrong = [n for n, kind in _KINDS.items() if n in content and not isinstance(content[n], kind)]
    return wrong or [n for n, rows in content.get("tables", {}).items() if not _is_table(rows)]


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _stored_definition(column: Column) -> dict[str, Any]:
    """Return a definition without default values."""
    default = asdict(Column(column.name, column.label))
    written = {name: value for name, value in asdict(column).items() if value != default[name]}
    return {"name": column.name, "label": column.label, **written}


def _definition(written: dict[str, Any]) -> Column:
    """Return the definition in a results file, where tuples are lists."""
    return Column(**{**written, "logged": tuple(written.get("logged", ()))})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""``results.json``: what a run found, and from what. Every table and figure is made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json

Row = dict[str, str | int | float | bool | None]

_AGAIN = "delete the file, and the same command makes it again"


@dataclass
class Results:
    """The results of one run, filled task by task."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    status: str = "running"
    """``running``, ``finished``, ``failed``, or ``interrupted`` by a signal."""
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Flat; the means that runs are compared by."""
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write ``results.json``; what is not a finite number is written as null."""
        write_json(path, {name: _plain(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read ``results.json``; ``InputError`` if it is damaged."""
        content = read_json(path, dict, _AGAIN)
        wrong = _of_wrong_type(content)
        if wrong:
            raise InputError(f"{path} is damaged ({wrong[0]} has the wrong type): {_AGAIN}")
        try:
            return cls(**content)
        except TypeError as error:  # a name is missing, or there is one too many
            raise InputError(f"{path} is damaged ({error}): {_AGAIN}") from error


_KINDS = {
    "name": str, "config": dict, "provenance": dict, "status": str, "error": str | None,
    "metrics": dict, "tables": dict,
}  # fmt: skip


def _of_wrong_type(content: dict[str, Any]) -> list[str]:
    """Return the names of values that ``Results.save`` would not have written so."""
    wrong = [n for n, kind in _KINDS.items() if n in content and not isinstance(content[n], kind)]
    return wrong or [n for n, rows in content.get("tables", {}).items() if not _is_table(rows)]


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

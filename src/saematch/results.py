"""``results.json``: what a run found, and from what. Every table and figure is made from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saematch.files import write_json

Row = dict[str, str | int | float | bool | None]


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
        """Read ``results.json``; ``ValueError`` if it is damaged."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a whole results file ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

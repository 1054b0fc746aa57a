"""The settings next to an SAE's weights: types of known fields, and refusal of unknown ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saematch.core.errors import InputError
from saematch.core.files import parse_json
from saematch.sae.formats.reading import refuse_pointer

DESCRIPTIVE = (
    "author authors comment comments commit created created_at date description git_commit id "
    "license metadata name note notes seed tags timestamp title url version"
)
"""Fields of any format that describe an SAE without changing what it computes."""
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a group of fields",
}
"""Names of the types of fields in messages."""
LARGEST = 1e300
"""Limit of numbers: larger ones may not fit into a float, and NaN does not compare below it."""


@dataclass(frozen=True)
class Fields:
    """Fields that the settings of a format may have."""

    understood: Mapping[str, type | tuple[type, ...]]
    """Types of the fields that are read. A whole number may also be written as text."""
    harmless: str = ""
    """Names, separated by spaces, of fields that do not change what the SAE computes, such as
    training settings."""
    closed: bool = True
    """Whether other fields are refused."""

    def read(self, path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
        """Return the known fields of a JSON file; empty if it is missing and no field is needed.

        Raises ``InputError`` for a file that is not a JSON object, and as ``checked`` does.
        """
        if not path.exists() and not needed:
            return {}
        return self.checked(str(path), read_json(path), needed)

    def checked(
        self, where: str, settings: Mapping[str, Any], needed: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the known fields that are not null, converted to their types.

        Raises ``InputError``, starting with ``where``, for a value of another type, for a needed
        field that is missing, and for a field that is neither understood nor harmless. Unknown
        fields that are null, false, zero or empty count as switched off.
        """
        legal = {*self.understood, *self.harmless.split(), *DESCRIPTIVE.split()}
        unknown = [
            name
            for name, value in settings.items()
            if self.closed and value and name not in legal and not name.startswith("_")
        ]
        if unknown:
            raise InputError(
                f"{where}: saematch does not know the field {_shown(unknown, settings)}, which may "
                "change what the SAE computes; if it does not, move it into 'metadata'"
            )
        values = {
            name: _typed(where, name, settings[name], kind)
            for name, kind in self.understood.items()
            if settings.get(name) is not None
        }
        missing = [name for name in needed if name not in values]
        if missing:
            raise InputError(f"{where} has no settings of an SAE: it lacks {', '.join(missing)}")
        return values


def read_json(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file; ``InputError`` if it is not a readable JSON object."""
    try:
        refuse_pointer(path)
        fields = parse_json(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); download the SAE again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} has no settings of an SAE, but {_brief(fields)}")
    return fields


def refuse_contradiction(
    path: Path, entries: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise ``InputError`` if entries of a weights file contradict the settings.

    ``entries`` are the entries that are not tensors (``Content.other``), or groups of them.
    """
    groups = [entries, *(value for value in entries.values() if isinstance(value, Mapping))]
    for group in groups:
        for name, value in settings.items():
            if name in group and group[name] != value:
                raise InputError(
                    f"{path} states {name}={_brief(group[name])} next to its tensors, but the "
                    f"SAE's settings state {_brief(value)}; make them agree"
                )


def _typed(where: str, name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if bool in kinds and isinstance(value, bool):
        return value
    written = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value)
    if written and str not in kinds and (int in kinds or float in kinds):
        value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST:
        if float in kinds:
            return float(value)
        if int in kinds and value == int(value):
            return int(value)
    if isinstance(value, tuple(k for k in kinds if k in (str, dict))):
        return value
    legal = " or ".join(KINDS[k] for k in kinds)
    raise InputError(f"{where}: {name}={_brief(value)} must be {legal}")


def _shown(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={_brief(settings[name])}" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."

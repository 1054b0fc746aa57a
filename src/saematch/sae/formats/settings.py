"""The settings that lie beside the weights of an SAE: their types, and fields nobody knows."""

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
"""Fields of any format that describe an SAE and cannot change what it computes."""
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a group of fields",
}
"""What messages call the types of fields."""
LARGEST = 1e300
"""Numbers beyond this do not fit into a float, and NaN is not below it."""


@dataclass(frozen=True)
class Fields:
    """The fields that one format's settings may have."""

    understood: Mapping[str, type | tuple[type, ...]]
    """Type of each field that is read. A whole number may also be written as text."""
    harmless: str = ""
    """Names, with spaces between, of fields that cannot change what the SAE computes, such as
    settings of its training."""
    closed: bool = True
    """Whether other fields are refused."""

    def read(self, path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
        """Return the understood fields of a JSON file; empty if no file is there or needed.

        Raises ``InputError`` as ``checked`` does, for a file that is no group of fields, and for
        one that lacks a needed field.
        """
        if not path.exists() and not needed:
            return {}
        return self.checked(str(path), read_json(path), needed)

    def checked(
        self, where: str, settings: Mapping[str, Any], needed: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the understood fields that are not null, each in its type.

        Raises ``InputError``, beginning with ``where``, for a value of another type, for a needed
        field that is missing, and for a field that is neither understood nor harmless. An unknown
        field that is null, false, zero or empty is taken as switched off.
        """
        known = {*self.understood, *self.harmless.split(), *DESCRIPTIVE.split()}
        unknown = [
            name
            for name, value in settings.items()
            if self.closed and value and name not in known and not name.startswith("_")
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
            raise InputError(
                f"{where} does not hold the settings of an SAE: it lacks {', '.join(missing)}"
            )
        return values


def read_json(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file; ``InputError`` if it cannot be read as such."""
    try:
        refuse_pointer(path)
        fields = parse_json(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch the SAE again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} does not hold the settings of an SAE, but {_brief(fields)}")
    return fields


def refuse_contradiction(
    path: Path, beside: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise ``InputError`` if what lies beside the tensors of a file contradicts the settings.

    ``beside`` are entries that are no tensors, as ``read_tensors`` returns them, or groups of such.
    """
    groups = [beside, *(value for value in beside.values() if isinstance(value, Mapping))]
    for group in groups:
        for name, value in settings.items():
            if name in group and group[name] != value:
                raise InputError(
                    f"{path} states {name}={_brief(group[name])} beside its tensors, but the SAE's "
                    f"settings state {_brief(value)}; make them agree"
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

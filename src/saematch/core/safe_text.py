"""Escaping of outside text, such as names, errors and replies of servers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, break a line, reverse text or cannot be encoded."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+.!|~$&-])")


def visible(value: Any) -> Any:
    """Return text, or the text in lists and mappings, with control characters as ``\\x1b``."""
    if isinstance(value, str):
        return _CONTROLS.sub(lambda control: ascii(control[0])[1:-1], value)
    if isinstance(value, dict):
        return {visible(key): visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(visible(inner) for inner in value)
    return value


def for_spreadsheets(frame: DataFrame) -> DataFrame:
    """Return a table in which a spreadsheet reads no text cell as a formula.

    Text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return gets an apostrophe
    in front. Numbers do not change.
    """
    return frame.map(
        lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
    )


def in_markdown(text: str) -> str:
    """Return text as one escaped line of Markdown, without links, images or tables."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))


def shortened(text: str, length: int = 60) -> str:
    """Return text as one quoted line of at most ``length`` characters and an ellipsis."""
    line = visible(" ".join(text.split()))
    return f"'{line[:length]}…'" if len(line) > length else f"'{line}'"

"""Text from outside, such as names, errors and answers of servers, made safe to show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal, break a line, reverse text or cannot be encoded."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+.!|~$&-])")


def visible(value: Any) -> Any:
    """Return text with control characters written out, as ``\\x1b``; in lists and mappings too."""
    if isinstance(value, str):
        return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, dict):
        return {visible(key): visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(visible(inner) for inner in value)
    return value


def for_spreadsheets(frame: DataFrame) -> DataFrame:
    """Return a table whose cells of text are no formulas to a spreadsheet.

    An apostrophe goes before text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage
    return. Numbers stay as they are.
    """
    return frame.map(
        lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
    )


def in_markdown(text: str) -> str:
    """Return text as one line of Markdown that shows it as it is: no link, no image, no table."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))

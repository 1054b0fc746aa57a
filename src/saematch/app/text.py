"""Text for the terminal: columns at most 80 characters wide, and suggestions of names."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Sequence

HELP = "see saematch --help"


def two_columns(rows: Iterable[tuple[str, str]], left: int = 0) -> str:
    """Return rows of a name and a text, which is wrapped; ``left`` is the least width of names.

    A name that is wider than 26 characters gets a line of its own.
    """
    rows = list(rows)
    width = min(shutil.get_terminal_size().columns, 80)
    column = min(max([left, *(len(name) for name, _ in rows)]), 26) + 4
    lines: list[str] = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - column, break_on_hyphens=False) or [""]
        head = f"  {name}"
        if len(head) + 2 > column:
            lines.append(head)
            if not text:
                continue
            head = ""
        lines.append(f"{head:<{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n"


def suggested(name: str, names: Sequence[str]) -> str:
    """Return the name that ``name`` probably means; empty if none is similar."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return close[0] if close else ""

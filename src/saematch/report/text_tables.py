"""Tables of texts for the terminal and the log. A wide table becomes several, below each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 80
"""Number of columns of output that is not a terminal."""
BETWEEN = 2
"""Number of blanks between two columns."""
AT_THE_END = 1
"""Number of blanks after the last column."""
LONGEST_LINE = 12
"""Length above which the name of an arm is broken at its underscores."""


class TextTable(NamedTuple):
    """A table of texts."""

    title: str
    headings: list[str]
    """Headings of the columns after the row heads."""
    rows: list[list[str]]
    """Cells of each row: its row heads, then a cell for each heading."""
    heads: tuple[str, ...] = ("layers",)
    """Headings of the row heads, which each part of a split table repeats."""


def console(record: bool = False) -> Console:
    """Return a console on standard output, with 80 columns unless that is a terminal."""
    terminal = Console(record=record)
    return terminal if terminal.is_terminal else Console(width=WIDTH, record=record)


def print_table(table: TextTable, printer: Console) -> None:
    """Print a title in bold, and the table in as many parts as the console's width needs."""
    if table.title:
        printer.print(f"\n[bold]{escape(table.title)}[/]", soft_wrap=True, highlight=False)
    for number, part in enumerate(parts(table, printer.width)):
        if number:
            printer.print()
        printer.print(part)


def parts(table: TextTable, width: int) -> Iterator[Table]:
    """Yield tables that have at most ``width`` characters in a line.

    A table with more columns than rows is turned if it then fits. Any other table is split between
    its columns. Only a cell that is too long by itself is folded.
    """
    turned = _turned(table)
    if not _fits(table, width) and len(table.rows) < len(table.headings) and _fits(turned, width):
        table = turned
    n_heads = len(table.heads)
    widths = [min(w, width // 3) for w in _widths(table)]
    room = width - sum(w + BETWEEN for w in widths[:n_heads])
    columns: list[int] = []
    left = room
    for number in range(n_heads, len(widths)):
        if columns and widths[number] + AT_THE_END > left:
            yield _rich(table, columns)
            columns, left = [], room
        columns.append(number)
        left -= widths[number] + BETWEEN
    yield _rich(table, columns)


def broken(name: str) -> str:
    """Return a long name on several lines, which end in its underscores."""
    lines = [""]
    for word in name.replace("_", "_ ").split(" "):
        if lines[-1] and len(lines[-1] + word) > LONGEST_LINE:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _widths(table: TextTable) -> list[int]:
    """Return the length of the longest line of each column."""
    columns = zip((*table.heads, *table.headings), *table.rows, strict=True)
    return [max(cell_len(line) for text in cells for line in text.split("\n")) for cells in columns]


def _fits(table: TextTable, width: int) -> bool:
    return sum(w + BETWEEN for w in _widths(table)) - BETWEEN + AT_THE_END <= width


def _turned(table: TextTable) -> TextTable:
    """Return the table with a column for each row."""
    n_heads = len(table.heads)
    labels = ["\n".join(row[:n_heads]) for row in table.rows]
    cells = zip(*(row[n_heads:] for row in table.rows), strict=True)
    whole_words = (heading.replace("-\n", "") for heading in table.headings)
    names = [heading.replace("_\n", "_").replace("\n", " ") for heading in whole_words]
    rows = [[name, *of_column] for name, of_column in zip(names, cells, strict=True)]
    return TextTable(table.title, labels, rows, ("",))


def _rich(table: TextTable, columns: Sequence[int]) -> Table:
    """Return the row heads and some columns."""
    printed = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in table.heads:
        printed.add_column(escape(head), overflow="fold")
    headings = (*table.heads, *table.headings)
    for number in columns:
        printed.add_column(escape(headings[number]), justify="right", overflow="fold")
    for row in table.rows:
        cells = (*row[: len(table.heads)], *(row[number] for number in columns))
        printed.add_row(*map(escape, cells))
    return printed

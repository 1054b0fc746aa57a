"""The definitions of metrics as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from saematch.core.columns import Column


def print_metrics(columns: Iterable[Column]) -> None:
    """Print the name, label, unit, better direction, range, interval and meaning of metrics."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("name", "label", "unit", "better", "range", "interval", "meaning"):
        table.add_column(heading, overflow="fold")
    for column in columns:
        interval = "yes" if column.interval else "no"
        better = column.better or "–"
        unit = column.unit or "–"
        table.add_row(
            column.name, column.label, unit, better, limits(column), interval, column.meaning
        )
    console.print(table, highlight=False, markup=False)


def limits(column: Column) -> str:
    """Return the least and the greatest value of a metric, as ``0 to 1`` or ``any``."""
    least, greatest = column.least, column.greatest
    if math.isinf(least) and math.isinf(greatest):
        return "any"
    if math.isinf(greatest):
        return f"at least {least:g}"
    if math.isinf(least):
        return f"at most {greatest:g}"
    return f"{least:g} to {greatest:g}"

"""Definitions of metrics: a table of them, and those from evaluations of other packages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from importlib import import_module

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from saematch.core.columns import Column
from saematch.core.files import PRESETS
from saematch.core.tables import Tables
from saematch.evaluate.evaluation import Evaluation
from saematch.evaluate.match_tables import MatchTables
from saematch.report.frames import has, table


def print_metrics(columns: Iterable[Column]) -> None:
    """Print the name, label, unit, better direction, range, interval and meaning of metrics."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    printed = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("name", "label", "unit", "better", "range", "interval", "meaning"):
        printed.add_column(heading, overflow="fold")
    for column in columns:
        interval = "yes" if column.interval else "no"
        better = column.better or "–"
        unit = column.unit or "–"
        printed.add_row(
            column.name, column.label, unit, better, limits(column), interval, column.meaning
        )
    console.print(printed, highlight=False, markup=False)


def markdown(columns: Iterable[Column]) -> str:
    """Return the same table in Markdown."""
    lines = ["| name | meaning | unit | better | range | interval |", "| --- " * 6 + "|"]
    for column in columns:
        meaning = f"{column.label}: {column.meaning}" if column.meaning else column.label
        cells = (
            f"`{column.name}`", meaning, column.unit or "–",
            column.better or "–", limits(column), "yes" if column.interval else "no",
        )  # fmt: skip
        escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


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


def own_columns() -> dict[str, Column]:
    """Return the definitions of all metrics of this package."""
    from saematch.judge.scores import COLUMNS as JUDGE
    from saematch.training.train_saes import COLUMNS as TRAINING

    evaluations: list[type[Evaluation]] = [MatchTables, *_evaluations()]
    columns = [column for evaluation in evaluations for column in evaluation.columns]
    return {column.name: column for column in (*columns, *JUDGE, *TRAINING)}


def _evaluations() -> list[type[Evaluation]]:
    """Return the classes of the evaluations that have a preset."""
    presets = sorted((PRESETS / "evaluations").glob("*.yaml"))
    targets = [re.search(r"^_target_: (.+)\.(\w+)$", p.read_text("utf-8"), re.M) for p in presets]
    return [getattr(import_module(target[1]), target[2]) for target in targets if target]


def other_metrics(tables: Tables) -> list[tuple[str, Column]]:
    """Return the logged metrics of evaluations of other packages, each with its table."""
    builtin = own_columns()
    return [
        (name, column)
        for column in tables.columns.values()
        if column.name not in builtin
        for name in column.logged
        if has(table(tables, name), column.name)
    ]

"""The page of a comparison: figures, the numbers in them, and all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saematch.compare.comparison import SUITES, Comparison, shown
from saematch.compare.figures import cell_look
from saematch.compare.plan import shown_rows
from saematch.compare.terminal import agreement_table, findings, headline, number, with_interval
from saematch.core.pairs import DEFAULT
from saematch.core.tables import rows_of
from saematch.report.frames import unique, where
from saematch.report.pages import write_template


class Table(NamedTuple):
    """A table of texts."""

    heads: list[str]
    lines: list[list[str]]


class Metric(NamedTuple):
    """A metric on the page."""

    label: str
    figure: str
    """Path relative to the page; empty without a figure."""
    numbers: Table


def write_page(comparison: Comparison, metrics: Sequence[str], path: Path) -> None:
    """Write the page; its figures are in the folder ``figures`` next to it."""
    figures = {name: f"figures/{file.name}" for name, file in comparison.figures.items()}
    write_template(
        path,
        "comparison.html",
        title="comparison",
        headline=headline(comparison),
        findings=findings(comparison),
        metrics=[
            Metric(
                comparison.column(name).with_unit,
                figures.get(name, ""),
                _numbers(comparison, name),
            )
            for name in metrics
        ],
        curves=[
            (f"{comparison.column(name).with_unit} by layer", figures[f"{name}_by_layer"])
            for name in metrics
            if f"{name}_by_layer" in figures
        ],
        agreement=_agreement(comparison),
        agreement_figure=figures.get("agreement", ""),
        runs=_runs(comparison),
    )


def _numbers(comparison: Comparison, metric: str) -> Table:
    """Return the metric by run, SAE suite, arm and strategy."""
    rows = shown_rows(comparison, metric)
    cells = unique(rows, SUITES, "arm", "strategy")
    heads = []
    for suites, arm, strategy in cells:
        label = str(cell_look(arm, strategy, comparison.means)["label"])
        heads.append(label if suites == DEFAULT else f"{label}, {suites}")
    lines = []
    for run in comparison.compared:
        settings = [shown(run.parameters[name]) for name in comparison.parameters]
        line = [run.name, *settings]
        for suites, arm, strategy in cells:
            key = {"run": run.name, SUITES: suites, "arm": arm, "strategy": strategy}
            matching = where(rows, **key)
            line.append(with_interval(rows_of(matching)[0]) if len(matching) else "–")
        lines.append(line)
    return Table(["run", *comparison.parameters, *heads], lines)


def _agreement(comparison: Comparison) -> Table | None:
    """Return the agreement of the runs' matches by arm; None if no two runs share SAEs."""
    if comparison.by_layer.agreement.empty:
        return None
    table = agreement_table(comparison)
    return Table([*table.heads, *table.headings], table.rows)


def _runs(comparison: Comparison) -> Table:
    rows = comparison.run_rows()
    lines = []
    for row in rows:
        plain = {name: "–" if value is None else str(value) for name, value in row.items()}
        plain |= {"git_commit": plain["git_commit"][:10], "code": plain["code"][:10]}
        plain |= {"compared": "yes" if row["compared"] else "no"}
        plain |= {
            objective.metric: number(value)
            for objective in comparison.objectives
            if (value := row[objective.metric]) is not None
        }
        lines.append(list(plain.values()))
    return Table(list(rows[0]), lines)

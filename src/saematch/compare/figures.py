"""Figures of a comparison: each metric against the swept setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, exp, log
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.compare.comparison import Comparison, shown
from saematch.compare.plan import Panel, Plan, is_numeric, shown_rows, unique_values
from saematch.compare.runs import Value
from saematch.core.columns import COLUMNS, column_of
from saematch.core.pairs import DEFAULT, NO_ARM
from saematch.core.tables import Row
from saematch.report.style import (
    MATCHLESS_STYLES,
    SIZE,
    arm_style,
    axis_label,
    cell_style,
    legend,
    line,
    panels,
    save,
    scale,
    unique,
    where,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_SPAN = 20
"""Positive numbers that span more than this factor stand on a log axis."""
CONTROL_STYLES = {"random": (":", "x"), "identity": ("-.", "D"), "ceiling": ("-", "^"),
                  "paraphrase": ("--", "v")}  # fmt: skip
"""Line and marker of a judge's controls."""

Cell = tuple[str, str | None]
"""Arm and strategy."""


def draw_comparison(
    comparison: Comparison, metrics: Sequence[str], plan: Plan, folder: Path
) -> dict[str, Path]:
    """Draw a figure for each metric; return the PNG files by metric."""
    figures = {}
    for metric in metrics:
        figure = _figure(comparison, metric, plan)
        if figure is not None:
            figures[metric] = save(figure, folder / f"{metric}.png")
    return figures


def _figure(comparison: Comparison, metric: str, plan: Plan) -> Figure | None:
    rows = shown_rows(comparison, metric)
    if not rows:
        return None
    styles = {cell: cell_look(*cell, comparison.rows) for cell in unique(rows, "arm", "strategy")}
    n_rows = ceil(len(plan.panels) / 4)
    columns = ceil(len(plan.panels) / n_rows)
    figure, axes = panels(columns, 3.7, n_rows)
    for axis, panel in zip(axes, plan.panels, strict=False):
        of_panel = where(rows, suites=panel.suites)
        if panel.against is None:
            _by_cell(axis, of_panel, styles)
        else:
            known = unique_values(comparison, panel.against)
            _by_parameter(axis, of_panel, run_series(comparison, panel, known), known, styles)
            axis.set_xlabel(panel.against)
        axis.set_title(_title(panel))
    for axis in axes[len(plan.panels) :]:
        axis.set_visible(False)
    logarithmic = _scale_values(axes, metric, rows)
    for axis in axes[::columns]:
        axis.set_ylabel(axis_label(metric) if logarithmic else column_of(metric).with_unit)
    figure.suptitle(_heading(metric, rows), fontsize=10)
    if plan.panels[0].against is not None:
        legend(figure, *axes, columns=3 if columns < 3 else 2 * columns)
    return figure


def cell_look(arm: str, strategy: str | None, rows: Sequence[Row]) -> dict[str, object]:
    """Return the style of an arm, of its strategy, or of a judge's control, its label included."""
    if strategy is None:
        return arm_style(arm, rows)
    if arm == NO_ARM and strategy not in MATCHLESS_STYLES:
        from saematch.report.judged import CONTROL_LABELS  # brings torch

        dashes, marker = CONTROL_STYLES[strategy]
        label = CONTROL_LABELS[strategy]
        return {"color": "#000000", "label": label, "linestyle": dashes, "marker": marker}
    return cell_style(arm, strategy, rows)


def _heading(metric: str, rows: Sequence[Row]) -> str:
    n = len(unique(rows, "run"))
    over = ", mean over data sets" if metric in COLUMNS and rows[0]["strategy"] else ""
    intervals = any(row["low"] is not None for row in rows)
    runs = f"{n} run{'s' if n > 1 else ''}"
    return f"{column_of(metric).with_unit}{over}; {runs}{', with intervals' if intervals else ''}"


def _title(panel: Panel) -> str:
    parts = [f"{name}={shown(value)}" for name, value in panel.fixed.items()]
    return "\n".join(([] if panel.suites == DEFAULT else [panel.suites]) + parts)


def run_series(
    comparison: Comparison, panel: Panel, values: Sequence[Value]
) -> list[list[tuple[Value, str]]]:
    """Return value and name of runs that make one line each: of like runs, each is in another."""
    assert panel.against is not None
    of_run = {run: run.parameters[panel.against] for run in comparison.compared
              if panel.fixed.items() <= run.parameters.items()}  # fmt: skip
    if panel.scattered:
        return [[(value, run.name)] for run, value in of_run.items()]
    lines: list[list[tuple[Value, str]]] = []
    for value in values:
        for number, run in enumerate(run for run, its in of_run.items() if its == value):
            if number == len(lines):
                lines.append([])
            lines[number].append((value, run.name))
    return lines


def _by_parameter(
    axis: Axes,
    rows: Sequence[Row],
    series: Sequence[Sequence[tuple[Value, str]]],
    values: Sequence[Value],
    styles: Mapping[Cell, dict[str, object]],
) -> None:
    """Draw a line with its band against numbers, dots with bars against anything else."""
    numeric = is_numeric(values) and len(values) > 1
    width = 0.7 / len(styles)
    for number, ((arm, strategy), style) in enumerate(styles.items()):
        of_run = {row["run"]: row for row in where(rows, arm=arm, strategy=strategy)}
        for of_line in series:
            there = [(value, of_run[name]) for value, name in of_line if name in of_run]
            if numeric and len(there) > 1:
                at = [float(value) for value, _ in there]  # type: ignore[arg-type]
                line(axis, at, [_named(row) for _, row in there], "value", **style)
                continue
            for value, row in there:
                shift = 0 if numeric else (number - (len(styles) - 1) / 2) * width
                at = float(value) if numeric else values.index(value)  # type: ignore[arg-type]
                _dot(axis, at + shift, row, style)
    if numeric:
        _scale_parameter(axis, [float(value) for value in values])  # type: ignore[arg-type]
    else:
        axis.set_xlim(-0.5, len(values) - 0.5)
        for at in range(1, len(values)):
            axis.axvline(at - 0.5, color="#EEEEEE", zorder=0)
        _name_ticks(axis, [shown(value) for value in values])


def _by_cell(axis: Axes, rows: Sequence[Row], styles: Mapping[Cell, dict[str, object]]) -> None:
    """Draw dots with bars, one a run, by arm."""
    for number, ((arm, strategy), style) in enumerate(styles.items()):
        of_cell = where(rows, arm=arm, strategy=strategy)
        for place, row in enumerate(of_cell):
            _dot(axis, number + 0.15 * (place - (len(of_cell) - 1) / 2), row, style)
    axis.set_xlim(-0.5, len(styles) - 0.5)
    _name_ticks(axis, [str(style["label"]) for style in styles.values()])


def _named(row: Row) -> Row:
    return {"value": row["value"], "value_low": row["low"], "value_high": row["high"]}


def _dot(axis: Axes, at: float, row: Row, style: Mapping[str, object]) -> None:
    if row["low"] is not None and row["high"] is not None:
        bar = {"color": style["color"], "linewidth": 2.5, "alpha": 0.4}
        axis.plot([at, at], [row["low"], row["high"]], **bar)  # type: ignore[arg-type]
    axis.plot([at], [row["value"]], **{**SIZE, **style, "linestyle": "none"})  # type: ignore[arg-type]


def _name_ticks(axis: Axes, labels: Sequence[str]) -> None:
    room = 42 / len(labels)  # characters that a panel's width has for each
    turned = any(len(label) > room for label in labels)
    how = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axis.set_xticks(range(len(labels)), labels, parse_math=False, **how)  # type: ignore[arg-type]


def _scale_parameter(axis: Axes, values: Sequence[float]) -> None:
    """Let the axis of a number show the values that were run, where there is room for them."""
    from matplotlib.ticker import NullLocator

    is_log = min(values) > 0 and max(values) / min(values) > LOG_SPAN
    at = [log(value) for value in values] if is_log else values
    room = 0.06 * (at[-1] - at[0])
    ends = (at[0] - room, at[-1] + room)
    if is_log:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        ends = (exp(ends[0]), exp(ends[1]))
    axis.set_xlim(*ends)
    if min(later - earlier for earlier, later in pairwise(at)) > 1.5 * room:
        axis.set_xticks(values, [shown(value) for value in values])


def _scale_values(axes: Sequence[Axes], metric: str, rows: Sequence[Row]) -> bool:
    """Give all panels one scale that shows every interval; return whether it is logarithmic."""
    known = [row[end] for row in rows for end in ("value", "low", "high")]
    ends = [float(end) for end in known if end is not None]
    lowest, highest = min(ends), max(ends)
    if (metric == "explained_variance" and lowest < -1) or (metric == "delta_loss" and highest > 3):
        for axis in axes:
            scale(axis, metric, ends)
        return True
    room = 0.06 * (highest - lowest) or 0.05 * abs(highest) or 0.05
    for axis in axes:
        axis.set_ylim(lowest - room, highest + room)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    return False

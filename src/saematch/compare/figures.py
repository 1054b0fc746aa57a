"""Figures of a comparison: each metric against the swept setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, exp, log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saematch.compare.comparison import Comparison, shown
from saematch.compare.plan import Panel, Plan, is_numeric, shown_rows, unique_values
from saematch.compare.runs import Value
from saematch.core.pairs import DEFAULT, NO_ARM
from saematch.core.progress import progress
from saematch.core.tables import Row, rows_of
from saematch.report.frames import has, numbers, unique, values_of, where
from saematch.report.style import (
    SIZE,
    SYMLOG,
    arm_style,
    axis_label,
    cell_style,
    is_wide,
    legend,
    line,
    panels,
    save,
    scale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LOG_SPAN = 20
"""Positive numbers that span more than this factor get a log axis."""
CONTROL_STYLES = {"random": (":", "x"), "identity": ("-.", "D"), "ceiling": ("-", "^"),
                  "paraphrase": ("--", "v")}  # fmt: skip
"""Lines and markers of a judge's controls."""

Cell = tuple[str, str | None]
"""Arm and strategy."""


def draw_comparison(
    comparison: Comparison, metrics: Sequence[str], plan: Plan, folder: Path
) -> dict[str, Path]:
    """Draw a figure for each metric; return the PNG files by metric."""
    figures = {}
    with progress("draw figures", len(metrics), "figure") as bar:
        for metric in metrics:
            figure = _figure(comparison, metric, plan)
            if figure is not None:
                figures[metric] = save(figure, folder / f"{metric}.png")
            bar.advance()
    return figures


def _figure(comparison: Comparison, metric: str, plan: Plan) -> Figure | None:
    rows = shown_rows(comparison, metric)
    if rows.empty:
        return None
    cells = unique(rows, "arm", "strategy")
    looks = {(arm, strategy): cell_look(arm, strategy, comparison.means) for arm, strategy in cells}
    n_rows = ceil(len(plan.panels) / 4)
    n_columns = ceil(len(plan.panels) / n_rows)
    figure, axes = panels(n_columns, 3.7, n_rows)
    for axis, panel in zip(axes, plan.panels, strict=False):
        of_panel = where(rows, suites=panel.suites)
        if panel.against is None:
            _by_cell(axis, of_panel, looks)
        else:
            values = unique_values(comparison, panel.against)
            _by_parameter(axis, of_panel, run_series(comparison, panel, values), values, looks)
            axis.set_xlabel(panel.against)
        axis.set_title(_title(panel))
    for axis in axes[len(plan.panels) :]:
        axis.set_visible(False)
    _scale_values(axes, metric, rows)
    column = comparison.column(metric)
    for axis in axes[::n_columns]:
        axis.set_ylabel(axis_label(column, axis))
    figure.suptitle(_heading(comparison, metric, rows), fontsize=10)
    if plan.panels[0].against is not None:
        legend(figure, *axes, columns=3 if n_columns < 3 else 2 * n_columns)
    return figure


def cell_look(arm: str, strategy: str | None, frame: DataFrame) -> dict[str, object]:
    """Return the style and label of an arm, of its strategy, or of a judge's control."""
    if strategy is None:
        return arm_style(arm, frame)
    if arm == NO_ARM and strategy in CONTROL_STYLES:
        from saematch.report.judged import CONTROL_LABELS  # imports torch

        dashes, marker = CONTROL_STYLES[strategy]
        label = CONTROL_LABELS[strategy]
        return {"color": "#000000", "label": label, "linestyle": dashes, "marker": marker}
    return cell_style(arm, strategy, frame)


def _heading(comparison: Comparison, metric: str, rows: DataFrame) -> str:
    n = len(values_of(rows, "run"))
    pooled = metric in comparison.columns and rows["strategy"].iloc[0]
    parts = [f"{n} run{'s' if n > 1 else ''}"] + ["with intervals"] * has(rows, "low")
    label = comparison.column(metric).with_unit
    return f"{label}{', mean over data sets' if pooled else ''}; {', '.join(parts)}"


def _title(panel: Panel) -> str:
    parts = [f"{name}={shown(value)}" for name, value in panel.fixed.items()]
    return "\n".join(([] if panel.suites == DEFAULT else [panel.suites]) + parts)


def run_series(
    comparison: Comparison, panel: Panel, values: Sequence[Value]
) -> list[list[tuple[Value, str]]]:
    """Return the value and name of the runs of each line; runs with equal values are in others."""
    assert panel.against is not None
    by_run = {run: run.parameters[panel.against] for run in comparison.compared
              if panel.fixed.items() <= run.parameters.items()}  # fmt: skip
    if panel.scattered:
        return [[(value, run.name)] for run, value in by_run.items()]
    lines: list[list[tuple[Value, str]]] = []
    for value in values:
        for number, run in enumerate(run for run, of_run in by_run.items() if of_run == value):
            if number == len(lines):
                lines.append([])
            lines[number].append((value, run.name))
    return lines


def _by_parameter(
    axis: Axes,
    rows: DataFrame,
    series: Sequence[Sequence[tuple[Value, str]]],
    values: Sequence[Value],
    looks: Mapping[Cell, dict[str, object]],
) -> None:
    """Draw lines with bands against numbers, or dots with bars against other values."""
    numeric = is_numeric(values) and len(values) > 1
    width = 0.7 / len(looks)
    for number, ((arm, strategy), look) in enumerate(looks.items()):
        of_cell = where(rows, arm=arm, strategy=strategy).set_index("run", drop=False)
        for of_line in series:
            points = [(value, name) for value, name in of_line if name in of_cell.index]
            chosen = of_cell.loc[[name for _, name in points]]
            if numeric and len(points) > 1:
                ends = {"low": "value_low", "high": "value_high"}
                at = [float(value) for value, _ in points]  # type: ignore[arg-type]
                line(axis, at, chosen.rename(columns=ends), "value", **look)
                continue
            for (value, _), row in zip(points, rows_of(chosen), strict=True):
                shift = 0 if numeric else (number - (len(looks) - 1) / 2) * width
                place = float(value) if numeric else values.index(value)  # type: ignore[arg-type]
                _dot(axis, place + shift, row, look)
    if numeric:
        _scale_parameter(axis, [float(value) for value in values])  # type: ignore[arg-type]
    else:
        axis.set_xlim(-0.5, len(values) - 0.5)
        for boundary in range(1, len(values)):
            axis.axvline(boundary - 0.5, color="#EEEEEE", zorder=0)
        _name_ticks(axis, [shown(value) for value in values])


def _by_cell(axis: Axes, rows: DataFrame, looks: Mapping[Cell, dict[str, object]]) -> None:
    """Draw dots with bars by arm, a dot for each run."""
    for number, ((arm, strategy), look) in enumerate(looks.items()):
        of_cell = rows_of(where(rows, arm=arm, strategy=strategy))
        for place, row in enumerate(of_cell):
            _dot(axis, number + 0.15 * (place - (len(of_cell) - 1) / 2), row, look)
    axis.set_xlim(-0.5, len(looks) - 0.5)
    _name_ticks(axis, [str(look["label"]) for look in looks.values()])


def _dot(axis: Axes, at: float, row: Row, style: Mapping[str, object]) -> None:
    if row["low"] is not None and row["high"] is not None:
        bar = {"color": style["color"], "linewidth": 2.5, "alpha": 0.4}
        axis.plot([at, at], [row["low"], row["high"]], **bar)  # type: ignore[arg-type]
    axis.plot([at], [row["value"]], **{**SIZE, **style, "linestyle": "none"})  # type: ignore[arg-type]


def _name_ticks(axis: Axes, labels: Sequence[str]) -> None:
    room = 42 / len(labels)  # characters for each label in a panel's width
    turned = any(len(label) > room for label in labels)
    rotation = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axis.set_xticks(range(len(labels)), labels, parse_math=False, **rotation)  # type: ignore[arg-type]


def _scale_parameter(axis: Axes, values: Sequence[float]) -> None:
    """Scale the axis of a number; its ticks are the values of the runs if there is room."""
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


def _scale_values(axes: Sequence[Axes], metric: str, rows: DataFrame) -> None:
    """Give all panels one scale that shows every interval."""
    ends = np.concatenate([numbers(rows, end) for end in ("value", "low", "high")])
    ends = ends[~np.isnan(ends)]
    lowest, highest = float(ends.min()), float(ends.max())
    if metric in SYMLOG and is_wide(lowest, highest):
        for axis in axes:
            scale(axis, metric, ends)
        return
    room = 0.06 * (highest - lowest) or 0.05 * abs(highest) or 0.05
    for axis in axes:
        axis.set_ylim(lowest - room, highest + room)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)

"""Figures of runs side by side: curves by layer, and the agreement of matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saematch.compare.by_layer import METRICS, agreement_by_arm
from saematch.compare.comparison import SUITES, Comparison, described
from saematch.compare.figures import cell_look
from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT
from saematch.core.progress import progress
from saematch.report.frames import numbers, unique, values_of, where
from saematch.report.style import (
    BASELINES,
    COLOURS,
    axis_label,
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

MAX_PANELS = 4
MAX_LINES = 6
"""Largest number of pairs of runs whose agreement is drawn by layer; more make a matrix."""
MARKERS = "os^DvP"
"""Markers of runs, in the order of ``COLOURS``."""
LOG_SPAN = 20
"""Positive values that span more than this factor get a log axis."""


def draw_by_layer(comparison: Comparison, metrics: Sequence[str], folder: Path) -> dict[str, Path]:
    """Draw a metric by layer with a line for each run, and the agreement of the runs' matches.

    Returns the PNG files, named ``<metric>_by_layer`` and ``agreement``.
    """
    figures = {}
    shown = [metric for metric in METRICS if metric in metrics]
    with progress("draw figures by layer", len(shown), "figure") as bar:
        for metric in shown:
            rows = where(comparison.by_layer.metrics, metric=metric)
            figure = _curves(comparison, comparison.column(metric), rows) if len(rows) else None
            if figure is not None:
                name = f"{metric}_by_layer"
                figures[name] = save(figure, folder / f"{name}.png")
            bar.advance()
    if len(comparison.by_layer.agreement):
        figures["agreement"] = save(_agreement(comparison), folder / "agreement.png")
    return figures


def _curves(comparison: Comparison, column: Column, rows: DataFrame) -> Figure | None:
    """Return a panel for each arm and strategy that most runs share; None without two layers."""
    cells = _cells(rows)
    if not cells:
        return None
    figure, axes = panels(len(cells), 3.4)
    looks = _looks(comparison)
    shown = []
    for axis, (suites, arm, strategy) in zip(axes, cells, strict=True):
        of_cell = where(rows, suites=suites, arm=arm, strategy=strategy)
        shown.append(of_cell)
        for run, look in looks.items():
            of_run = where(of_cell, run=run).sort_values("target_layer")
            if len(of_run):
                frame = of_run.rename(columns={"low": "value_low", "high": "value_high"})
                line(axis, of_run["target_layer"].tolist(), frame, "value", **look)
        label = str(cell_look(arm, strategy, comparison.means)["label"])
        axis.set_title(label if suites == DEFAULT else f"{label}, {suites}")
        axis.set_xlabel("layer of the target SAE")
        layers = sorted({int(layer) for layer in of_cell["target_layer"]})
        axis.set_xticks(layers[:: 1 + len(layers) // 10])
    _scale(axes, column, np.concatenate([numbers(frame, "value") for frame in shown]))
    axes[0].set_ylabel(axis_label(column, axes[0]))
    figure.suptitle(f"{column.with_unit} by layer", fontsize=10)
    legend(figure, *axes, columns=1 if len(axes) == 1 else len(axes))
    return figure


def _cells(rows: DataFrame) -> list[tuple[str, str, str | None]]:
    """Return suites, arms and strategies with curves, those of most runs first.

    Baselines have curves only if there are no other arms. A cell with several sources of a target
    has no curve, nor has one with a single layer.
    """
    cells = {}
    for cell in unique(rows, SUITES, "arm", "strategy"):
        of_cell = where(rows, **dict(zip((SUITES, "arm", "strategy"), cell, strict=True)))
        repeated = of_cell.duplicated(["run", "target_layer"]).any()
        if not repeated and of_cell["target_layer"].nunique() > 1:
            cells[cell] = of_cell["run"].nunique()
    cells = {cell: n for cell, n in cells.items() if cell[1] not in BASELINES} or cells
    return sorted(cells, key=lambda cell: -cells[cell])[:MAX_PANELS]


def _looks(comparison: Comparison) -> dict[str, dict[str, object]]:
    """Return the style of each run."""
    looks = {}
    for number, run in enumerate(comparison.compared):
        settings = described(run, comparison.parameters)
        looks[run.name] = _look(number, f"{run.name}: {settings}" if settings else run.name)
    return looks


def _look(number: int, label: str) -> dict[str, object]:
    """Return the style of a line; the first lines are wider, so that equal lines are all seen.

    The second six lines are dashed.
    """
    at = number % len(COLOURS)
    return {
        "color": COLOURS[at], "marker": MARKERS[at], "label": label,
        "linestyle": "-" if number == at else "--",
        "linewidth": 3 - 0.35 * at, "markersize": 8 - 0.8 * at,
    }  # fmt: skip


def _scale(axes: Sequence[Axes], column: Column, values: np.ndarray) -> None:
    """Give all panels one scale."""
    values = values[np.isfinite(values)]
    lowest, highest = float(values.min()), float(values.max())
    room = 0.08 * (highest - lowest) or 0.05 * abs(highest) or 0.05
    for axis in axes:
        if column.name == "judge_score":
            axis.set_ylim(0.95, 3.05)
            axis.set_yticks([1, 2, 3], ["1 DIFFERENT", "2 MAYBE", "3 SAME"])
        elif column.name == "explained_variance" and lowest < -1:
            scale(axis, column.name, values)
        elif lowest > 0 and highest / lowest > LOG_SPAN:
            axis.set_yscale("log")
        else:
            axis.set_ylim(lowest - room, highest + room)


def _agreement(comparison: Comparison) -> Figure:
    """Return a panel for each arm: agreement by layer, or a matrix if there are many runs."""
    rows = comparison.by_layer.agreement
    arms = values_of(rows, "arm")
    arms = ([arm for arm in arms if arm not in BASELINES] or arms)[:MAX_PANELS]
    curves = len(unique(rows, "run", "against_run")) <= MAX_LINES
    figure, axes = panels(len(arms), 3.4)
    for axis, arm in zip(axes, arms, strict=True):
        of_arm = where(rows, arm=arm)
        axis.set_title(arm)
        if curves:
            _agreement_by_layer(axis, of_arm)
        else:
            _agreement_matrix(axis, of_arm, [run.name for run in comparison.compared])
    chance = rows["chance"].mean()
    title = f"share of equal entries of two runs' matches; by chance {chance:.2g}"
    figure.suptitle(title if curves else f"{title}; mean over pairs of SAEs", fontsize=10)
    if curves:
        axes[0].set_ylabel("share of equal entries")
        legend(figure, *axes)
    return figure


def _agreement_by_layer(axis: Axes, rows: DataFrame) -> None:
    """Draw a line for each pair of runs, and the agreement by chance."""
    pairs = unique(rows, "source_suite", "source_layer", "target_suite", "target_layer")
    for number, (run, other) in enumerate(unique(rows, "run", "against_run")):
        of_both = where(rows, run=run, against_run=other)
        keys = of_both[["source_suite", "source_layer", "target_suite", "target_layer"]]
        at = [pairs.index(tuple(key)) for key in keys.itertuples(index=False)]
        line(axis, at, of_both, "agreement", **_look(number, f"{run} and {other}"))
    look: Mapping[str, object] = {"color": BASELINES["random"], "linestyle": ":"}
    axis.axhline(rows["chance"].mean(), label="by chance", **look)  # type: ignore[arg-type]
    step = 1 + len(pairs) // 8
    labels = [f"{source}→{target}" for _, source, _, target in pairs]
    axis.set_xticks(range(len(pairs))[::step], labels[::step])
    axis.set_xlabel("layers")
    axis.set_ylim(-0.03, 1.03)


def _agreement_matrix(axis: Axes, rows: DataFrame, runs: Sequence[str]) -> None:
    """Draw the mean agreement of each pair of runs."""
    matrix = np.full((len(runs), len(runs)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    for row in agreement_by_arm(rows).itertuples():
        first, second = runs.index(row.run), runs.index(row.against_run)
        matrix[first, second] = matrix[second, first] = row.agreement
    axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    for (first, second), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            colour = "black" if value > 0.5 else "white"
            axis.text(second, first, f"{value:.2f}", ha="center", va="center", color=colour,
                      fontsize=7)  # fmt: skip
    axis.set_xticks(range(len(runs)), runs, rotation=90)
    axis.set_yticks(range(len(runs)), runs)
    axis.grid(False)

"""Shared plotting helpers: colours, panels, lines with intervals, saving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saematch.core.columns import Column
from saematch.core.files import replacing
from saematch.core.pairs import DEFAULT, NO_ARM, SUITE_COLUMNS
from saematch.core.tables import rows_of
from saematch.report.frames import arms_of, interval_of, layer_pairs, numbers, unique

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Colours of arms, in their order (Okabe and Ito, readable by colour-blind people)."""
BASELINES = {"identity": "#777777", "random": "#AAAAAA"}
BASELINE_MARKERS = {"identity": "D", "random": "x"}
STRATEGY_STYLES = {
    "permute": {"linestyle": "-", "marker": "o"},
    "permute_raw": {"linestyle": "--", "marker": "s", "markerfacecolor": "white"},
    "increment": {"linestyle": ":", "marker": "P"},
}
STRATEGY_LABELS = {"permute": "", "permute_raw": ", raw scale", "increment": ", increment"}
MATCHLESS_STYLES = {
    "reconstruct_current": ("SAE of the target", "-", "^"),
    "reconstruct_previous": ("SAE of the source", ":", "v"),
    "drop": ("hidden state copied (drop)", "--", "x"),
    "increment_free": ("free increment (ceiling)", "-.", "P"),
}
"""Label, line and marker."""
SIZE = {"markersize": 4.5, "linewidth": 1.4, "marker": "o"}


def panels(columns: int, height: float = 3.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "saematch", "font.size": 9, "axes.titlesize": 9})
    size = (0.6 + 3.1 * max(columns, 1.6), height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG and SVG, the same bytes for the same figure; return the PNG."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text():  # names from outside; ticks get their text when drawn
            text.set_parse_math(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # computes the layout once, not for each format
    # ``Figure.savefig`` would draw everything a second time for each format
    figure.dpi = 130
    with replacing(path.with_suffix(".png")) as part:
        FigureCanvasAgg(figure).print_png(part)
    with replacing(path.with_suffix(".svg")) as part:
        FigureCanvasSVG(figure).print_svg(part, metadata={"Date": None})
    plt.close(figure)
    return path


def line(
    axis: Axes, at: Sequence[int | float], frame: DataFrame, metric: str, **style: object
) -> None:
    """Draw a metric at the positions ``at``, and its interval as a band if all rows have one.

    A single row becomes a point with an error bar.
    """
    ends = interval_of(frame, metric)
    single: dict[str, object] = {"linestyle": "none"} if len(frame) == 1 else {}
    drawn = axis.plot(at, numbers(frame, metric), **{**SIZE, **style, **single})  # type: ignore[arg-type]
    colour = drawn[0].get_color()
    if ends is not None and single:
        axis.vlines(at, *ends, color=colour, linewidth=1.4)
    elif ends is not None:
        axis.fill_between(at, *ends, color=colour, alpha=0.18, linewidth=0)


def by_pair(axis: Axes, frame: DataFrame, metric: str, panel: DataFrame, **style: object) -> None:
    """Draw a metric against the layer pair, or as points from left to right if there is one pair.

    ``panel`` has all rows that the panel shows. Its layer pairs are the ticks, so an arm has no
    point at a pair that it did not match.
    """
    if frame.empty:
        return
    pairs = layer_pairs(panel)
    if len(pairs) == 1:
        shift = 0.1 * len(axis.lines)
        line(axis, [shift], frame, metric, **style)
        ticks: Sequence[float] = [shift / 2]
        axis.set_xlim(-0.2, shift + 0.2)
    else:
        ticks = range(len(pairs))
        places = zip(frame["source_layer"], frame["target_layer"], strict=True)
        line(axis, [pairs.index(place) for place in places], frame, metric, **style)
    step = 1 + len(pairs) // 12
    labels = [f"{source}→{target}" for source, target in pairs]
    axis.set_xticks(list(ticks)[::step], labels[::step])
    suites = unique(panel, *SUITE_COLUMNS)
    other = f", {'→'.join(suites[0])}" if len(suites) == 1 and suites[0] != _DEFAULTS else ""
    axis.set_xlabel(f"layers{other}")


_DEFAULTS = (DEFAULT, DEFAULT)


def dots(axis: Axes, frame: DataFrame, labels: Sequence[str], metric: str,
         colours: Sequence[object]) -> None:  # fmt: skip
    """Draw a metric of a few rows as dots with intervals, one below another."""
    for at, (row, colour) in enumerate(zip(rows_of(frame), colours, strict=True)):
        low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
        if low is not None and high is not None:
            axis.plot([low, high], [at, at], color=colour, linewidth=2.5, alpha=0.4)
        if row[metric] is None:
            continue
        axis.plot([row[metric]], [at], color=colour, marker="o", markersize=6)  # type: ignore[arg-type]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="x", color="#EEEEEE", zorder=0)


def arm_style(arm: str, frame: DataFrame) -> dict[str, object]:
    """Return colour, marker and label of an arm: baselines grey, methods in their order."""
    methods = [name for name in arms_of(frame) if name not in BASELINES]
    colour = BASELINES.get(arm) or COLOURS[methods.index(arm) % len(COLOURS)]
    style: dict[str, object] = {"color": colour, "label": arm}
    return style | ({"marker": BASELINE_MARKERS[arm]} if arm in BASELINES else {"zorder": 3})


def cell_style(arm: str, strategy: str, frame: DataFrame) -> dict[str, object]:
    """Return the style of an arm under a strategy, or of a strategy that needs no match.

    Strategies of other packages are labelled by their names.
    """
    if arm == NO_ARM:
        label, dashes, marker = MATCHLESS_STYLES.get(strategy, (strategy, "-.", "s"))
        return {"color": "#000000", "label": label, "linestyle": dashes, "marker": marker}
    label = f"{arm}{STRATEGY_LABELS.get(strategy, f', {strategy}')}"
    style = STRATEGY_STYLES.get(strategy, {"linestyle": ":"})
    return {**style, **arm_style(arm, frame), "label": label}


def legend(figure: Figure, *axes: Axes, columns: int = 4) -> None:
    """Put one legend for all panels below the figure."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center",
                  ncols=min(columns, len(handles)), frameon=False)  # fmt: skip


def scale(axis: Axes, metric: str, values: np.ndarray) -> None:
    """Scale the axis of explained variance (linear down to -1) or of the change in loss."""
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    if metric == "explained_variance":
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_yscale("symlog", linthresh=1, linscale=3)
        axis.set_yticks([-100, -10, -1, -0.5, 0, 0.5, 1], minor=False)
        axis.set_ylim(1.5 * min(lowest, 0), 1.03)
    else:
        axis.set_yscale("symlog", linthresh=0.1, linscale=0.5)
        axis.set_yticks([-1, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30], minor=False)
        axis.set_ylim(min(1.5 * lowest, 0), max(1.5 * highest, 0.3))
    axis.yaxis.set_major_formatter("{x:g}")


_SCALES = {"explained_variance": "log scale below −1", "delta_loss": "log scale above 0.1"}


def axis_label(column: Column) -> str:
    """Return a metric's label, with its unit and the scale that ``scale`` gives it, if any."""
    remarks = ", ".join(filter(None, [column.unit, _SCALES.get(column.name)]))
    return f"{column.label} ({remarks})" if remarks else column.label

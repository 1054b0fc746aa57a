"""Shared plotting helpers: colours, panels, lines with intervals, saving."""

from __future__ import annotations

import logging
import textwrap
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
MARKERS = ("o", "s", "<", ">", "p", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Markers and line styles of arms, in their order, which tell arms apart without colours."""
HATCHES = ("", "////", "....", "xxxx", "----", "oooo")
"""Hatches of areas, in the order of arms or labels."""
BASELINES = {"identity": "#777777", "random": "#AAAAAA"}
BASELINE_MARKERS = {"identity": "D", "random": "x"}
STRATEGY_STYLES = {
    "permute": {"linestyle": "-"},
    "permute_raw": {"linestyle": "--", "markerfacecolor": "white"},
    "increment": {"linestyle": ":", "fillstyle": "left"},
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
SYMLOG = {"explained_variance": (1.0, 3.0, "below −1"), "delta_loss": (0.1, 0.5, "above 0.1")}
"""By metric: the end of the linear part of its symlog axis, the length of this part in decades, and
the logarithmic part in words."""
_TICKS = (0, 1, 10, 100, 1000, 0.5, 3, 30, 300, 2, 20, 200, 5, 50, 500)
"""Possible ticks of a symlog axis, in units of the end of its linear part; the first ones that have
room are drawn."""


def panels(columns: int, height: float = 3.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "saematch", "font.size": 9, "axes.titlesize": 9,
                         "pdf.fonttype": 42, "hatch.linewidth": 0.6})  # fmt: skip
    size = (0.6 + 3.1 * max(columns, 1.6), height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path, label: str = "") -> Path:
    """Write the figure as PNG, SVG and PDF, the same bytes for the same figure; return the PNG.

    ``label`` is a line of small text above the panels.
    """
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.text import Text

    if label:
        lines = textwrap.fill(label, int(16 * figure.get_figwidth()))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=7, color="#666666")
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
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # logs each table of each font
    with replacing(path.with_suffix(".pdf")) as part:
        FigureCanvasPdf(figure).print_pdf(part, metadata={"CreationDate": None})
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
    """Return colour, marker, line and label of an arm: baselines grey, methods in their order."""
    if arm in BASELINES:
        return {"color": BASELINES[arm], "marker": BASELINE_MARKERS[arm], "linestyle": "-",
                "label": arm}  # fmt: skip
    methods = [name for name in arms_of(frame) if name not in BASELINES]
    number = methods.index(arm) % len(COLOURS)
    return {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": DASHES[number],
            "label": arm, "zorder": 3}  # fmt: skip


def cell_style(arm: str, strategy: str, frame: DataFrame) -> dict[str, object]:
    """Return the style of an arm under a strategy, or of a strategy that needs no match.

    Strategies of other packages are labelled by their names.
    """
    if arm == NO_ARM:
        label, dashes, marker = MATCHLESS_STYLES.get(strategy, (strategy, "-.", "s"))
        return {"color": "#000000", "label": label, "linestyle": dashes, "marker": marker}
    label = f"{arm}{STRATEGY_LABELS.get(strategy, f', {strategy}')}"
    style = STRATEGY_STYLES.get(strategy, {"linestyle": ":"})
    return {**arm_style(arm, frame), **style, "label": label}


def legend(figure: Figure, *axes: Axes, columns: int = 4) -> None:
    """Put one legend for all panels below the figure, in as many columns as its width allows."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for number in range(min(columns, len(handles)), 0, -1):
        drawn = figure.legend(list(handles.values()), list(handles), loc="outside lower center",
                              ncols=number, frameon=False)  # fmt: skip
        for text in drawn.get_texts():  # names from outside; their width is needed before ``save``
            text.set_parse_math(False)
        if number == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            return
        drawn.remove()


def from_zero(axis: Axes) -> None:
    """Let the y axis begin at 0, with room above the highest point."""
    highest = axis.dataLim.y1
    axis.set_ylim(0, 1.08 * highest if highest > 0 else None)


def scale(axis: Axes, metric: str, values: np.ndarray) -> None:
    """Scale the axis of explained variance or of the change in loss.

    The axis is linear, or symlog if a value is beyond ±1.
    """
    values = values[np.isfinite(values)]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    wide = is_wide(lowest, highest)
    room = 1.5 if wide else 1.2
    if metric == "explained_variance":
        axis.axhline(0, color="#999999", linewidth=0.8)
        low, high = room * min(lowest, 0), 1.03
    else:
        low, high = room * min(lowest, 0), room * max(highest, 0.01)
    if wide:
        threshold, length, _ = SYMLOG[metric]
        symlog(axis, (low, high), threshold, length)
    else:
        axis.set_ylim(low, high)


def is_wide(lowest: float, highest: float) -> bool:
    """Whether an axis of explained variance or of the change in loss is symlog."""
    return lowest < -1 or highest > 1


def symlog(axis: Axes, limits: tuple[float, float], threshold: float, length: float) -> None:
    """Give the y axis a symlog scale, linear within ± ``threshold``, and ticks between its limits.

    ``length`` is that of the linear part from zero to the threshold, in decades.
    """
    axis.set_yscale("symlog", linthresh=threshold, linscale=length)
    axis.set_ylim(*limits)
    place = axis.yaxis.get_transform().transform
    low, high = place(np.array(limits))
    ticks: dict[float, float] = {}
    numbers = [sign * number * threshold for number in _TICKS for sign in (1, -1)]
    for tick, at in zip(numbers, place(np.array(numbers)), strict=True):
        distance = min((abs(at - other) for other in ticks.values()), default=np.inf)
        if low <= at <= high and distance > 0.06 * (high - low):
            ticks[tick] = at
    axis.set_yticks(list(ticks), minor=False)
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")


def axis_label(column: Column, axis: Axes) -> str:
    """Return a metric's label with its unit; for a symlog axis, the label says so."""
    part = f"symlog {SYMLOG[column.name][2]}" if axis.get_yscale() == "symlog" else ""
    remarks = ", ".join(filter(None, [column.unit, part]))
    return f"{column.label} ({remarks})" if remarks else column.label

"""What all figures share: colours, panels, lines with their intervals, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.core.columns import column_of
from saematch.core.files import replacing
from saematch.core.pairs import DEFAULT, NO_ARM, OF_DEFAULT, SUITE_COLUMNS, suites_of
from saematch.core.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Of arms, in their order (Okabe and Ito's set, told apart by colour-blind readers)."""
BASELINES = {"identity": "#777777", "random": "#AAAAAA"}
BASELINE_MARKERS = {"identity": "D", "random": "x"}
STRATEGY_STYLES = {
    "permute": {"linestyle": "-", "marker": "o"},
    "permute_raw": {"linestyle": "--", "marker": "s", "markerfacecolor": "white"},
}
STRATEGY_LABELS = {"permute": "", "permute_raw": ", raw scale"}
MATCHLESS_STYLES = {
    "reconstruct_current": ("SAE of the target", "-", "^"),
    "reconstruct_previous": ("SAE of the source", ":", "v"),
    "drop": ("hidden state copied (drop)", "--", "x"),
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
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text():  # names from outside; ticks have no text before they are drawn
            text.set_parse_math(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found once, not for each format
    for suffix, options in ((".png", {"dpi": 130}), (".svg", {"metadata": {"Date": None}})):
        with replacing(path.with_suffix(suffix)) as part:
            figure.savefig(part, format=suffix[1:], **options)
    plt.close(figure)
    return path


def line(
    axis: Axes, at: Sequence[int | float], rows: Sequence[Row], metric: str, **style: object
) -> None:
    """Draw a metric, and its interval as a band if the rows have one.

    A single row is a point with an error bar.
    """
    if len(rows) == 1:
        return _point(axis, at[0], rows[0], metric, style)
    drawn = axis.plot(at, [row[metric] for row in rows], **{**SIZE, **style})  # type: ignore[arg-type]
    low, high = ([row.get(f"{metric}_{end}") for row in rows] for end in ("low", "high"))
    if low and None not in low + high:
        axis.fill_between(at, low, high, color=drawn[0].get_color(), alpha=0.18, linewidth=0)  # type: ignore[arg-type]


def _point(axis: Axes, at: int | float, row: Row, metric: str, style: Mapping[str, object]) -> None:
    drawn = axis.plot([at], [row[metric]], **{**SIZE, **style, "linestyle": "none"})  # type: ignore[arg-type]
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is not None and high is not None:
        axis.vlines(at, float(low), float(high), color=drawn[0].get_color(), linewidth=1.4)


def by_pair(
    axis: Axes, rows: Sequence[Row], metric: str, panel: Sequence[Row], **style: object
) -> None:
    """Draw a metric against the layer pair; with one pair, points from left to right.

    ``panel`` has the rows of everything that the panel shows. Its pairs of layers are the ticks,
    so that an arm without a match of some pair has no point there.
    """
    if not rows:
        return
    pairs = unique(panel, "source_layer", "target_layer")
    if len(pairs) == 1:
        shift = 0.1 * len(axis.lines)
        line(axis, [shift], rows, metric, **style)
        ticks: Sequence[float] = [shift / 2]
        axis.set_xlim(-0.2, shift + 0.2)
    else:
        ticks = range(len(pairs))
        at = [pairs.index((row["source_layer"], row["target_layer"])) for row in rows]
        line(axis, at, rows, metric, **style)
    step = 1 + len(pairs) // 12
    labels = [f"{source}→{target}" for source, target in pairs]
    axis.set_xticks(list(ticks)[::step], labels[::step])
    suites = unique(panel, *SUITE_COLUMNS)
    elsewhere = f", {'→'.join(suites[0])}" if len(suites) == 1 and suites[0] != _HERE else ""
    axis.set_xlabel(f"layers{elsewhere}")


_HERE = (DEFAULT, DEFAULT)


def dots(axis: Axes, rows: Sequence[Row], labels: Sequence[str], metric: str,
         colours: Sequence[object]) -> None:  # fmt: skip
    """Draw a metric of few things as dots with intervals, one below the other."""
    for at, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        value = row[metric]
        low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
        if low is not None and high is not None:
            axis.plot([low, high], [at, at], color=colour, linewidth=2.5, alpha=0.4)  # type: ignore[arg-type]
        axis.plot([value], [at], color=colour, marker="o", markersize=6)  # type: ignore[arg-type]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="x", color="#EEEEEE", zorder=0)


def unique(rows: Sequence[Row], *columns: str) -> list[tuple]:
    """Return the different values of columns, in order of first appearance."""
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def where(rows: Sequence[Row], **values: object) -> list[Row]:
    """Return the rows that have the values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def of_one_suite(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the default suite; of a run without them, all rows if one suite, or one
    pair of suites, has them all."""
    if len({suites_of(row) for row in rows}) == 1:
        return list(rows)
    return where(rows, **OF_DEFAULT)


def within_suites(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose source and target belong to one suite."""
    return [row for row in rows if row["source_suite"] == row["target_suite"]]


def arms_of(rows: Sequence[Row]) -> list[str]:
    """Return the arms of a table."""
    return [str(arm) for (arm,) in unique(rows, "arm") if arm != NO_ARM]


def datasets_of(rows: Sequence[Row]) -> list[str]:
    """Return the data sets of a table."""
    return [str(name) for (name,) in unique(rows, "dataset")]


def main_line(rows: Sequence[Row]) -> list[Row]:
    """Return one row of ``paths`` for each path and step of an arm: what carries the path on.

    Of the entries that leave the feature where the step before ended, the row of largest absolute
    path weight. Without such an entry the line ends.
    """
    chosen: dict[tuple[int, int], Row] = {}
    for row in rows:  # in the order of steps
        path, step = int(row["path"] or 0), int(row["step"] or 0)
        before, best = chosen.get((path, step - 1)), chosen.get((path, step))
        if step and (before is None or before["target_feature"] != row["source_feature"]):
            continue
        if best is None or _carried(row) > _carried(best):
            chosen[path, step] = row
    return list(chosen.values())


def _carried(row: Row) -> float:
    return abs(float(row["path_weight"] or 0))


def arm_style(arm: str, rows: Sequence[Row]) -> dict[str, object]:
    """Return colour, marker and label of an arm: baselines grey, methods in their order."""
    methods = [name for name in arms_of(rows) if name not in BASELINES]
    colour = BASELINES.get(arm) or COLOURS[methods.index(arm) % len(COLOURS)]
    style: dict[str, object] = {"color": colour, "label": arm}
    return style | ({"marker": BASELINE_MARKERS[arm]} if arm in BASELINES else {"zorder": 3})


def cell_style(arm: str, strategy: str, rows: Sequence[Row]) -> dict[str, object]:
    """Return the style of an arm under a strategy, or of a strategy that needs no match."""
    if arm == NO_ARM:
        label, dashes, marker = MATCHLESS_STYLES[strategy]
        return {"color": "#000000", "label": label, "linestyle": dashes, "marker": marker}
    label = f"{arm}{STRATEGY_LABELS[strategy]}"
    return {**STRATEGY_STYLES[strategy], **arm_style(arm, rows), "label": label}


def legend(figure: Figure, *axes: Axes, columns: int = 4) -> None:
    """Put one legend of all the panels below the figure."""
    known = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(known.values(), known.keys(), loc="outside lower center",
                  ncols=min(columns, len(known)), frameon=False)  # fmt: skip


def scale(axis: Axes, metric: str, values: Sequence[float]) -> None:
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


def axis_label(metric: str) -> str:
    """Return the label of an axis that ``scale`` scales, or of any other metric's."""
    remarks = ", ".join(filter(None, [column_of(metric).unit, _SCALES.get(metric)]))
    return f"{column_of(metric).label} ({remarks})" if remarks else column_of(metric).label

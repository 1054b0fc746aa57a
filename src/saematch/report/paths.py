"""Figures of features that are followed through the layers, and of explanations."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from saematch.core.pairs import OF_DEFAULT
from saematch.core.tables import Row, Tables, rows_of
from saematch.report.frames import (
    arms_of,
    layer_pairs,
    main_line,
    numbers,
    table,
    values_of,
    where,
)
from saematch.report.judged import LABEL_COLOURS
from saematch.report.style import arm_style, by_pair, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

N_EXPLAINED = 4
"""Number of paths, and of pairs at each end of the errors, in a figure of explanations."""
LABELS = {"jaccard": "Jaccard index", "cosine_W_dec": "cosine of decoder vectors"}
"""Names of the likeness of a step's two features, by column."""


def paths(tables: Tables) -> Figure | None:
    """Figures 18 and 19 without explanations: features followed through the layers.

    If a feature has several partners, the grid shows the one that carries most of the path's
    weight, and the curve shows the mean over all of them.
    """
    steps = where(table(tables, "paths"), **OF_DEFAULT)
    if steps.empty:
        return None
    arms, metric = arms_of(steps), "jaccard" if "jaccard" in steps else "cosine_W_dec"
    lines = main_line(where(steps, arm=arms[0]))
    layers = _layers_of(lines)
    n_paths = 1 + int(lines["path"].max())
    figure, (grid, means) = panels(2, 0.9 + 0.27 * max(n_paths, 6))
    grid.get_gridspec().set_width_ratios([1.1 * len(layers), 3])  # type: ignore[union-attr]
    figure.set_figwidth(4.5 + len(layers))
    _grid(grid, lines, metric)
    import matplotlib

    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), "viridis")
    name = LABELS[metric]
    figure.colorbar(colours, ax=grid, label=f"{name} of the step ({arms[0]})", fraction=0.03)
    for arm in arms:
        of_arm = where(steps, arm=arm)
        values = of_arm.assign(**{metric: numbers(of_arm, metric, 0.0)})
        pair = ["source_layer", "target_layer"]
        by_step = values.groupby(pair, sort=False, as_index=False)[metric].mean()
        by_pair(means, by_step, metric, steps, **arm_style(arm, steps))
    means.set_title(f"mean {name}")
    means.set_ylim(-0.03, 1.03)
    means.legend(frameon=False)
    return figure


def _layers_of(steps: DataFrame) -> list[int]:
    return sorted({layer for pair in layer_pairs(steps) for layer in pair})


def _grid(axis: Axes, lines: DataFrame, metric: str) -> None:
    """Draw each path as a row of features, joined by bars in the colour of their likeness."""
    import matplotlib

    layers, n_paths = _layers_of(lines), 1 + int(lines["path"].max())
    likeness = numbers(lines, metric, 0.0)
    for row, value in zip(rows_of(lines), likeness, strict=True):
        at: Any = row["path"]
        x = layers.index(row["source_layer"])  # type: ignore[arg-type]
        colour = matplotlib.colormaps["viridis"](value)
        axis.plot([x, x + 1], [at, at], color=colour, linewidth=9, zorder=1)
        for place, feature in ((x, row["source_feature"]), (x + 1, row["target_feature"])):
            axis.text(place, at, str(feature), ha="center", va="center", fontsize=7,
                      bbox={"facecolor": "white", "edgecolor": "#CCCCCC", "pad": 1.5})  # fmt: skip
    axis.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    axis.set_yticks(range(n_paths), [f"path {n}" for n in range(n_paths)], fontsize=7)
    axis.set_ylim(n_paths - 0.4, -0.6)
    axis.grid(False)


def explained_pairs(tables: Tables) -> Figure | None:
    """Figure 5's examples: explanations of the matched pairs of least and of greatest error."""
    features = where(table(tables, "features"), **OF_DEFAULT)
    if features.empty or "source_explanation" not in features:
        return None
    features = where(features, arm=arms_of(features)[0])
    source, target = layer_pairs(features)[0]
    rows = rows_of(where(features, source_layer=source, target_layer=target))
    if len(rows) > 2 * N_EXPLAINED:
        rows = [*rows[:N_EXPLAINED], *rows[-N_EXPLAINED:]]
    heads = ["error", f"layer {source}", f"layer {target}"]
    cells = [
        [_error(row), _explanation(row, "source", 52), _explanation(row, "target", 52)]
        for row in rows
    ]
    return _text_table(heads, cells, [0.1, 0.45, 0.45], [row.get("label") for row in rows])


def _error(row: Row) -> str:
    label = row.get("label")
    return f"{float(row['mse_W_dec'] or 0):.3g}" + (f"\n{label}" if label else "")


def explained_paths(tables: Tables) -> Figure | None:
    """Figures 18 and 19: features followed through the layers, each with its explanation."""
    steps = where(table(tables, "paths"), **OF_DEFAULT)
    if steps.empty or "source_explanation" not in steps:
        return None
    lines = main_line(where(steps, arm=arms_of(steps)[0]))
    chosen = values_of(lines, "path")[:N_EXPLAINED]
    layers = _layers_of(lines)
    cells = [
        [f"layer\n{layer}", *(_at_layer(where(lines, path=path), layer) for path in chosen)]
        for layer in layers
    ]
    heads = ["", *(f"path {path}" for path in chosen)]
    widths = [0.06, *[0.94 / len(chosen)] * len(chosen)]
    return _text_table(heads, cells, widths, [None] * len(layers))


def _at_layer(path: DataFrame, layer: int) -> str:
    """Return the explanation of a path's feature at a layer, and the label of the step there."""
    leaving = rows_of(where(path, source_layer=layer))
    arriving = rows_of(where(path, target_layer=layer))
    if not leaving and not arriving:
        return ""
    text = (
        _explanation(leaving[0], "source", 32)
        if leaving
        else _explanation(arriving[0], "target", 32)
    )
    label = arriving[0].get("label") if arriving else None
    return f"{text}\n{label}" if label else text


def _explanation(row: Row, end: str, width: int) -> str:
    text = str(row[f"{end}_explanation"] or "no explanation")
    lines = textwrap.wrap(f"{row[f'{end}_feature']}: {text}", width)
    return "\n".join(lines[:4]) + (" …" if len(lines) > 4 else "")


def _text_table(
    heads: list[str], cells: list[list[str]], widths: list[float], labels: list
) -> Figure:
    """Return a figure of a table of texts; a label colours the first cell of its line."""
    heights = [max(text.count("\n") + 1 for text in line) for line in cells]
    figure, axes = panels(1, 0.5 + 0.17 * (sum(heights) + 0.8 * len(heights)))
    axis = axes[0]
    figure.set_figwidth(9.5)
    axis.axis("off")
    axis.set_xlim(0, 1)
    axis.set_ylim(sum(heights) + 0.8 * len(heights), -1.2)
    starts = [sum(widths[:n]) for n in range(len(widths))]
    for x, head in zip(starts, heads, strict=True):
        axis.text(x, -0.4, head, weight="bold", va="center", fontsize=8)
    y = 0.0
    for line, height, label in zip(cells, heights, labels, strict=True):
        axis.axhline(y, color="#DDDDDD", linewidth=0.8)
        for x, text in zip(starts, line, strict=True):
            colour = LABEL_COLOURS.get(str(label), "black") if not x else "black"
            axis.text(x, y + 0.3, text, va="top", fontsize=7, color=colour, parse_math=False)
        y += height + 0.8
    return figure

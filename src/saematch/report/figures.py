"""Figures of a run, drawn from its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.evals.splice import NO_ARM
from saematch.files import replacing
from saematch.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
"""Of arms, in their order (Okabe and Ito's set, told apart by colour-blind readers)."""
BASELINES = {"identity": "#777777", "random": "#AAAAAA"}
BASELINE_MARKERS = {"identity": "D", "random": "x"}
STRATEGY_STYLES = {
    "permute": {"linestyle": "-", "marker": "o"},
    "permute_raw": {"linestyle": "--", "marker": "s", "markerfacecolor": "white"},
}
MATCHLESS_STYLES = {
    "reconstruct_current": ("SAE of the later layer", "-", "^"),
    "reconstruct_previous": ("SAE of the earlier layer", ":", "v"),
    "drop": ("hidden state copied (drop)", "--", "x"),
}
"""Label, line and marker."""
STRATEGY_LABELS = {"permute": "", "permute_raw": ", raw scale"}
SIZE = {"markersize": 4.5, "linewidth": 1.4, "marker": "o"}


def draw_figures(tables: Mapping[str, list[Row]], folder: Path) -> dict[str, Path]:
    """Draw all figures that the tables allow, as PNG and SVG; return the PNG files by name."""
    import matplotlib

    matplotlib.use("Agg")
    figures = {"mse": _mse(tables["matches"]), "matching": _matching(tables["matches"])}
    if tables.get("strategies"):
        for metric in ("explained_variance", "delta_loss"):
            figures[metric] = _strategies(tables["strategies"], metric)
    return {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def _save(figure: Figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    for suffix, options in ((".png", {"dpi": 160}), (".svg", {"metadata": {"Date": None}})):
        with replacing(path.with_suffix(suffix)) as part:
            figure.savefig(part, format=suffix[1:], **options)
    plt.close(figure)
    return path


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "saematch", "font.size": 9, "axes.titlesize": 9})
    figure, axes = plt.subplots(
        1, n, figsize=(0.6 + 3.1 * n, height), squeeze=False, layout="constrained"
    )
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, list(axes[0])


def _mse(rows: list[Row]) -> Figure:
    figure, axes = _panels(3, 3.2)
    for axis, part in zip(axes, ("W_enc", "b_enc", "W_dec"), strict=True):
        for arm in _arms(rows):
            _line(
                axis, [r for r in rows if r["arm"] == arm], f"mse_{part}", **_arm_style(arm, rows)
            )
        axis.set_title(part)
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes[0].set_ylabel("mean squared error, folded parameters")
    _legend(figure, axes[0])
    return figure


def _matching(rows: list[Row]) -> Figure:
    metrics = {
        "recall": "recall of the hidden permutation",
        "matching_score": "matching score",
        "jaccard": "Jaccard index",
    }
    shown = {m: t for m, t in metrics.items() if any(r.get(m) is not None for r in rows)}
    if not shown:  # neither a truth nor an evaluation: the value of the match is all there is
        shown = {"value": "value of the match"}
    figure, axes = _panels(len(shown), 3.2)
    for axis, (metric, title) in zip(axes, shown.items(), strict=True):
        for arm in _arms(rows):
            _line(axis, [r for r in rows if r["arm"] == arm], metric, **_arm_style(arm, rows))
        axis.set_title(title)
        if metric != "value":
            axis.set_ylim(-0.03, 1.03)
    _legend(figure, axes[0])
    return figure


def _strategies(rows: list[Row], metric: str) -> Figure:
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    cells = list(dict.fromkeys((str(row["arm"]), str(row["strategy"])) for row in rows))
    figure, axes = _panels(len(datasets), 3.9)
    for axis, dataset in zip(axes, datasets, strict=True):
        for arm, strategy in cells:
            of_cell = [
                r for r in rows
                if (r["arm"], r["strategy"], r["dataset"]) == (arm, strategy, dataset)
            ]  # fmt: skip
            _line(axis, of_cell, metric, **_cell_style(arm, strategy, rows))
        axis.set_title(dataset)
        values = [v for row in rows if math.isfinite(v := float(row[metric] or 0))]
        lowest, highest = min(values, default=0.0), max(values, default=0.0)
        if metric == "explained_variance":
            axis.axhline(0, color="#999999", linewidth=0.8)
            axis.set_yscale("symlog", linthresh=1, linscale=3)  # linear down to -1
            axis.set_yticks([-100, -10, -1, -0.5, 0, 0.5, 1], minor=False)
            axis.set_ylim(1.5 * min(lowest, 0), 1.03)
        else:
            axis.set_yscale("symlog", linthresh=0.1, linscale=0.5)
            axis.set_yticks([-1, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30], minor=False)
            axis.set_ylim(min(1.5 * lowest, 0), max(1.5 * highest, 0.3))
        axis.yaxis.set_major_formatter("{x:g}")
    label = {
        "explained_variance": "explained variance (log scale below −1)",
        "delta_loss": "change in loss (nats, log scale above 0.1)",
    }
    axes[0].set_ylabel(label[metric])
    _legend(figure, axes[0])
    return figure


def _line(axis: Axes, rows: list[Row], metric: str, **style: object) -> None:
    points = [(row["layer_from"], row["layer_to"], row[metric]) for row in rows]
    axis.plot(range(len(points)), [p[2] for p in points], **{**SIZE, **style})  # type: ignore[arg-type]
    axis.set_xticks(range(len(points)), [f"{a}→{b}" for a, b, _ in points])
    axis.set_xlabel("layers")


def _arms(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["arm"]) for row in rows if row["arm"] != NO_ARM))


def _arm_style(arm: str, rows: list[Row]) -> dict[str, object]:
    methods = [name for name in _arms(rows) if name not in BASELINES]
    colour = BASELINES.get(arm) or COLOURS[methods.index(arm) % len(COLOURS)]
    style: dict[str, object] = {"color": colour, "label": arm}
    return style | ({"marker": BASELINE_MARKERS[arm]} if arm in BASELINES else {})


def _cell_style(arm: str, strategy: str, rows: list[Row]) -> dict[str, object]:
    if arm == NO_ARM:
        label, line, marker = MATCHLESS_STYLES[strategy]
        return {"color": "#000000", "label": label, "linestyle": line, "marker": marker}
    label = f"{arm}{STRATEGY_LABELS[strategy]}"
    return {**STRATEGY_STYLES[strategy], **_arm_style(arm, rows), "label": label}


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)),
                  frameon=False)  # fmt: skip

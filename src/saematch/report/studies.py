"""Figures of single studies: what is not shown by layer alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from saematch.places import DEFAULT
from saematch.report.style import (
    COLOURS,
    METRIC_LABELS,
    arm_style,
    arms_of,
    by_place,
    cell_style,
    legend,
    line,
    panels,
    scale,
    unique,
    where,
)
from saematch.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tables = Mapping[str, list[Row]]
MARKERS = ("o", "s", "^", "D", "v", "P")


def feature_mse(tables: Tables) -> Figure | None:
    """Figure 5: distribution of the decoder's squared error over matched features."""
    rows = tables.get("feature_mse_histogram", [])
    if not rows:
        return None
    places = unique(rows, "layer_from", "layer_to")
    figure, axes = panels(len(places))
    for axis, (earlier, later) in zip(axes, places, strict=True):
        for arm in arms_of(rows):
            bins = where(rows, arm=arm, layer_from=earlier, layer_to=later)
            edges = [float(row["mse_low"] or 0) for row in bins] + [
                float(bins[-1]["mse_high"] or 0)
            ]
            counts = [int(row["n_pairs"] or 0) for row in bins]
            style = arm_style(arm, rows)
            axis.stairs(counts, edges, color=style["color"], label=arm, linewidth=1.4)  # type: ignore[arg-type]
        axis.set_title(f"layers {earlier}→{later}")
        axis.set_xlabel("squared error of the folded decoder vector")
    axes[0].set_ylabel("features")
    legend(figure, axes[0])
    return figure


def persistence(tables: Tables) -> Figure | None:
    """Figure 8 without the judge: a feature against its match in each later layer."""
    rows = tables["matches"]
    starts = [start for (start,) in unique(rows, "layer_from")]
    if len(unique(rows, "layer_from", "layer_to")) == len(starts) or len(rows) < 2:
        return None
    datasets = [str(name) for (name,) in unique(tables.get("strategies", []), "dataset")]
    shown = [m for m in ("agreement", "recall", "matching_score") if _has(rows, m)]
    figure, axes = panels(len(shown) + len(datasets[:1]), 3.6)
    for axis, metric in zip(axes, shown, strict=False):
        for arm in arms_of(rows):
            _by_distance(axis, where(rows, arm=arm), metric, starts, arm_style(arm, rows))
        axis.set_title(METRIC_LABELS[metric])
        axis.set_ylim(-0.03, 1.03)
    for axis, dataset in zip(axes[len(shown) :], datasets, strict=False):
        cells = where(tables["strategies"], dataset=dataset, quantile=None)
        for arm, strategy in unique(cells, "arm", "strategy"):
            of_cell = where(cells, arm=arm, strategy=strategy)
            style = cell_style(arm, strategy, cells)
            _by_distance(axis, of_cell, "explained_variance", starts, style)
        axis.set_title(f"explained variance, {dataset}")
        scale(axis, "explained_variance", [float(r["explained_variance"] or 0) for r in cells])
    legend(figure, axes[-1])
    return figure


def _by_distance(axis: object, rows: list[Row], metric: str, starts: list, style: dict) -> None:
    for number, start in enumerate(starts):
        of_start = [r for r in where(rows, layer_from=start) if r[metric] is not None]
        distance = [float(r["layer_to"] or 0) - float(r["layer_from"] or 0) for r in of_start]
        label = style["label"] if not number else None
        marker = MARKERS[number % len(MARKERS)]
        line(axis, distance, of_start, metric, **{**style, "label": label, "marker": marker})  # type: ignore[arg-type]
    marks = ", ".join(f"{m} {s}" for m, s in zip(_SIGNS, starts, strict=False))
    axis.set_xlabel(f"distance in layers (from layer: {marks})")  # type: ignore[attr-defined]


_SIGNS = ("●", "■", "▲", "◆", "▼", "✚")


def _has(rows: list[Row], metric: str) -> bool:
    return any(row.get(metric) is not None for row in rows)


def sparsity(tables: Tables) -> Figure | None:
    """Figure 14: explained variance and change in loss against mean L0."""
    rows = where(tables.get("strategies", []), quantile=None)
    if len(unique(rows, "saes")) < 2 or len(unique(rows, "layer_from", "layer_to")) != 1:
        return None
    l0 = {(r["saes"], r["layer"]): float(r["mean_l0"] or 0) for r in tables["layers"]}
    datasets = [str(name) for (name,) in unique(rows, "dataset")]
    figure, axes = panels(len(datasets), rows=2)
    metrics = ("explained_variance", "delta_loss")
    for axis, (metric, dataset) in zip(
        axes, [(m, d) for m in metrics for d in datasets], strict=True
    ):
        for arm, strategy in unique(rows, "arm", "strategy"):
            of_cell = where(rows, arm=arm, strategy=strategy, dataset=dataset)
            of_cell.sort(key=lambda row: l0[row["saes"], row["layer_from"]])
            at = [l0[row["saes"], row["layer_from"]] for row in of_cell]
            line(axis, at, of_cell, metric, **cell_style(arm, strategy, rows))
        axis.set_title(dataset)
        axis.set_xscale("log")
        axis.set_xticks(at, [f"{value:.0f}" for value in at])
        axis.minorticks_off()
        axis.set_xlabel(f"mean L0 of layer {rows[0]['layer_from']}")
        scale(axis, metric, [float(row[metric] or 0) for row in rows])
    for axis, metric in zip(axes[:: len(datasets)], metrics, strict=True):
        axis.set_ylabel(METRIC_LABELS[metric])
    legend(figure, axes[0])
    return figure


def similar_l0(tables: Tables) -> Figure | None:
    """Figure 15: mean L0 by layer of two sets of SAEs, and what each explains."""
    rows = where(tables.get("strategies", []), quantile=None)
    sets = [str(name) for (name,) in unique(rows, "saes")]
    if len(sets) < 2 or DEFAULT not in sets:
        return None
    datasets = [str(name) for (name,) in unique(rows, "dataset")]
    figure, axes = panels(1 + len(datasets), 3.6)
    dashes = dict(zip(sets, ("-", "--", ":"), strict=False))
    for name in sets:
        layers = where(tables["layers"], saes=name)
        at = [float(row["layer"] or 0) for row in layers]
        line(axes[0], at, layers, "mean_l0", color="#000000", linestyle=dashes[name], label=name)
    axes[0].set_title("mean L0")
    axes[0].set_xlabel("layer")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    for axis, dataset in zip(axes[1:], datasets, strict=True):
        for arm, strategy, name in unique(rows, "arm", "strategy", "saes"):
            style = cell_style(arm, strategy, rows)
            of_cell = where(rows, arm=arm, strategy=strategy, saes=name, dataset=dataset)
            label = f"{style['label']} ({name})"
            style |= {"label": label, "linestyle": dashes[name]}
            by_place(axis, of_cell, "explained_variance", **style)
        axis.set_title(f"explained variance, {dataset}")
        scale(axis, "explained_variance", [float(row["explained_variance"] or 0) for row in rows])
    legend(figure, axes[1])
    return figure


def quantiles(tables: Tables, metric: str) -> Figure | None:
    """Figures 16 and 17: partial matches, by layer and by the share of features permuted."""
    every = [row for row in tables.get("strategies", []) if row["strategy"] == "permute"]
    rows = [row for row in every if row["quantile"] is not None]
    if not rows or len(unique(rows, "saes")) > 1:
        return None
    import matplotlib

    arms, datasets = arms_of(rows), [str(name) for (name,) in unique(rows, "dataset")]
    shares = [q for (q,) in unique(rows, "quantile")]
    places = unique(rows, "layer_from", "layer_to")
    figure, axes = panels(len(datasets), rows=2, height=3.4)
    every, of_first = (
        [float(r[metric] or 0) for r in some] for some in (rows, where(rows, arm=arms[0]))
    )
    colours = matplotlib.colormaps["viridis"]
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, share in enumerate(shares):
            of_share = where(rows, arm=arms[0], dataset=dataset, quantile=share)
            colour = colours(0.9 * number / max(len(shares) - 1, 1))
            by_place(axis, of_share, metric, color=colour, label=f"q = {share:g}")
        axis.set_title(f"{dataset}, {arms[0]}")
        scale(axis, metric, of_first)
    for axis, dataset in zip(axes[len(datasets) :], datasets, strict=True):
        for number, (earlier, later) in enumerate(places):
            colour = colours(0.9 * number / max(len(places) - 1, 1))
            for arm, dash in zip(arms, ("-", ":", "--"), strict=False):
                curve = where(rows, arm=arm, dataset=dataset, layer_from=earlier, layer_to=later)
                curve.sort(key=lambda row: float(row["quantile"] or 0))
                at = [float(row["quantile"] or 0) for row in curve]
                label = f"{earlier}→{later}" if arm == arms[0] else None
                line(axis, at, curve, metric, color=colour, linestyle=dash, label=label)
        axis.set_xlabel(f"q, share permuted (dotted: {', '.join(arms[1:])})")
        scale(axis, metric, every)
    for axis in axes[:: len(datasets)]:
        axis.set_ylabel(METRIC_LABELS[metric])
    axes[0].legend(frameon=False, fontsize=7)
    axes[len(datasets)].legend(frameon=False, fontsize=7)
    return figure


def folding(tables: Tables) -> Figure | None:
    """Find-time against decode-time folding: differences of one switch at a time."""
    rows = [
        row
        for row in where(tables.get("contrasts", []), quantile=None, saes=DEFAULT)
        if {row["arm"], row["against_arm"]} <= {"folded", "unfolded"}
    ]
    kinds = unique(rows, "arm", "strategy", "against_arm", "against_strategy")
    if len(kinds) < 4:
        return None
    datasets = [str(name) for (name,) in unique(rows, "dataset")]
    figure, axes = panels(len(datasets), 3.6)
    metric = "explained_variance_difference"
    for axis, dataset in zip(axes, datasets, strict=True):
        for arm, strategy, against_arm, against in kinds:
            finding = arm != against_arm
            colour = COLOURS[0] if finding else COLOURS[5]
            fixed = f"decoded by {_UNITS[strategy]}" if finding else f"{arm} match"
            label = f"{'finding' if finding else 'decoding'} folded ({fixed})"
            plain = strategy == "permute" if finding else arm == "folded"
            of_kind = where(rows, dataset=dataset, arm=arm, strategy=strategy,
                            against_arm=against_arm, against_strategy=against)  # fmt: skip
            dash = "-" if plain else "--"
            by_place(axis, of_kind, metric, color=colour, label=label, linestyle=dash)
        axis.set_title(dataset)
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_yscale("symlog", linthresh=0.5, linscale=1.5)
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("gain in explained variance by folding")
    legend(figure, axes[0], 2)
    return figure


_UNITS = {"permute": "threshold", "permute_raw": "norm"}


def planted(tables: Tables) -> Figure | None:
    """Recall and explained variance on planted SAEs, in two gauges of their decoder vectors."""
    rows = tables.get("planted", [])
    if not rows:
        return None
    figure, axes = panels(3)
    metrics = (("recall", "permute"), ("explained_variance", "permute"))
    metrics += (("explained_variance", "permute_raw"),)
    dashes = dict(zip([name for (name,) in unique(rows, "saes")], ("-", "--"), strict=False))
    for axis, (metric, strategy) in zip(axes, metrics, strict=True):
        shown = where(rows, strategy=strategy)
        for (name, dash), arm in product(dashes.items(), arms_of(rows)):
            of_arm = where(shown, arm=arm, saes=name)
            style = arm_style(arm, rows)
            label = arm if name == DEFAULT else f"{arm}, {name.replace('_', ' ')}"
            if of_arm:
                by_place(axis, of_arm, metric, **{**style, "linestyle": dash, "label": label})
        if metric == "explained_variance":
            scale(axis, metric, [float(row[metric] or 0) for row in shown])
        else:
            axis.set_ylim(-0.03, 1.03)
        units = "" if metric == "recall" else f", decoded by {_UNITS[strategy]}"
        axis.set_title(metric.replace("_", " ") + units)
    legend(figure, axes[0], 5)
    return figure


def paths(tables: Tables) -> Figure | None:
    """Figures 18 and 19 without explanations: features followed through the layers."""
    rows = where(tables.get("paths", []), saes=DEFAULT)
    if not rows:
        return None
    import matplotlib

    arm = arms_of(rows)[0]
    rows = where(rows, arm=arm)
    metric = "jaccard" if "jaccard" in rows[0] else "cosine_W_dec"
    layers = sorted({layer for row in rows for layer in (row["layer_from"], row["layer_to"])})
    n_paths = 1 + max(int(row["path"] or 0) for row in rows)
    figure, (axis,) = panels(1, 0.8 + 0.27 * n_paths)
    figure.set_size_inches(1.6 + 1.0 * len(layers), 0.9 + 0.27 * n_paths)
    colours = matplotlib.colormaps["viridis"]
    for row in rows:
        x = layers.index(row["layer_from"])
        value = float(row[metric] or 0)
        axis.plot([x, x + 1], [row["path"]] * 2, color=colours(value), linewidth=9, zorder=1)  # type: ignore[list-item]
        for at, feature in ((x, row["feature_from"]), (x + 1, row["feature_to"])):
            axis.text(at, row["path"], str(feature), ha="center", va="center", fontsize=7,  # type: ignore[arg-type]
                      bbox={"facecolor": "white", "edgecolor": "#CCCCCC", "pad": 1.5})  # fmt: skip
    axis.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    axis.set_yticks(range(n_paths), [f"path {n}" for n in range(n_paths)], fontsize=7)
    axis.set_ylim(n_paths - 0.4, -0.6)
    axis.grid(False)
    label = {"jaccard": "Jaccard index of the step", "cosine_W_dec": "cosine of decoder vectors"}
    figure.colorbar(
        matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours),
        ax=axis, label=f"{label[metric]} ({arm})", fraction=0.03,
    )  # fmt: skip
    return figure

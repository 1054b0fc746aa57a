"""Figures of single studies: what is not shown by layer alone."""

from __future__ import annotations

from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING

from saematch.core.pairs import DEFAULT, OF_DEFAULT, SUITE_COLUMNS
from saematch.core.tables import Row, Tables
from saematch.report.judged import judge_bounds
from saematch.report.style import (
    COLOURS,
    arm_style,
    arms_of,
    axis_label,
    by_pair,
    cell_style,
    datasets_of,
    legend,
    line,
    main_line,
    panels,
    scale,
    unique,
    where,
    within_suites,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":")
"""Lines of the first suite, the second and the third."""


def feature_mse(tables: Tables) -> Figure | None:
    """Figure 5: distribution of the decoder's squared error over matched features."""
    rows = where(tables.rows("feature_mse_histogram"), **OF_DEFAULT)
    if not rows:
        return None
    pairs = unique(rows, "source_layer", "target_layer")
    figure, axes = panels(len(pairs))
    for axis, (earlier, later) in zip(axes, pairs, strict=True):
        for arm in arms_of(rows):
            bins = where(rows, arm=arm, source_layer=earlier, target_layer=later)
            if not bins:  # the arm has no match of this pair
                continue
            edges = [float(row["mse_low"] or 0) for row in bins] + [
                float(bins[-1]["mse_high"] or 0)
            ]
            counts = [int(row["n_pairs"] or 0) for row in bins]
            style = arm_style(arm, rows)
            axis.stairs(counts, edges, color=style["color"], label=arm, linewidth=1.4)  # type: ignore[arg-type]
        axis.set_title(f"layers {earlier}→{later}")
        axis.set_xlabel("squared error of the folded decoder vector")
    axes[0].set_ylabel("matched pairs of features")
    legend(figure, *axes)
    return figure


def persistence(tables: Tables) -> Figure | None:
    """Figure 8: a feature against its match in each later layer."""
    rows = where(tables.rows("matches"), **OF_DEFAULT)
    strategies = where(tables.rows("strategies"), **OF_DEFAULT)
    starts = [start for (start,) in unique(rows, "source_layer")]
    if len(unique(rows, "source_layer", "target_layer")) == len(starts) or len(rows) < 2:
        return None
    datasets = datasets_of(strategies)
    known = ("judge_score", "agreement", "recall", "matching_score")
    shown = [metric for metric in known if _has(rows, metric)]
    if not shown and not datasets:
        return None
    figure, axes = panels(len(shown) + len(datasets[:1]), 3.6)
    for axis, metric in zip(axes, shown, strict=False):
        for arm in arms_of(rows):
            _by_distance(axis, where(rows, arm=arm), metric, starts, arm_style(arm, rows))
        axis.set_title(axis_label(metric))
        if metric == "judge_score":
            judge_bounds(axis, tables)
        else:
            axis.set_ylim(-0.03, 1.03)
    for axis, dataset in zip(axes[len(shown) :], datasets, strict=False):
        cells = where(strategies, dataset=dataset, quantile=None)
        for arm, strategy in unique(cells, "arm", "strategy"):
            of_cell = where(cells, arm=arm, strategy=strategy)
            style = cell_style(arm, strategy, cells)
            _by_distance(axis, of_cell, "explained_variance", starts, style)
        axis.set_title(f"explained variance, {dataset}")
        scale(axis, "explained_variance", [float(r["explained_variance"] or 0) for r in cells])
    legend(figure, *axes)
    return figure


def _by_distance(axis: object, rows: list[Row], metric: str, starts: list, style: dict) -> None:
    for number, start in enumerate(starts):
        of_start = [r for r in where(rows, source_layer=start) if r.get(metric) is not None]
        distance = [float(r["target_layer"] or 0) - float(r["source_layer"] or 0) for r in of_start]
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
    rows = within_suites(where(tables.rows("strategies"), quantile=None))
    if (
        len(unique(rows, "source_suite")) < 2
        or len(unique(rows, "source_layer", "target_layer")) != 1
    ):
        return None
    l0 = {(r["suite"], r["layer"]): float(r["mean_l0"] or 0) for r in tables.rows("layers")}
    ticks = sorted({l0[row["source_suite"], row["source_layer"]] for row in rows})
    if len(set(map(round, ticks))) < 2:  # as of one sparsity on two language models
        return None
    datasets = datasets_of(rows)
    figure, axes = panels(len(datasets), rows=2)
    metrics = ("explained_variance", "delta_loss")
    for axis, (metric, dataset) in zip(
        axes, [(m, d) for m in metrics for d in datasets], strict=True
    ):
        for arm, strategy in unique(rows, "arm", "strategy"):
            of_cell = where(rows, arm=arm, strategy=strategy, dataset=dataset)
            of_cell.sort(key=lambda row: l0[row["source_suite"], row["source_layer"]])
            at = [l0[row["source_suite"], row["source_layer"]] for row in of_cell]
            line(axis, at, of_cell, metric, **cell_style(arm, strategy, rows))
        axis.set_title(dataset)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{value:.0f}" for value in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"mean L0 of layer {rows[0]['source_layer']}")
        scale(axis, metric, [float(row[metric] or 0) for row in rows])
    for axis, metric in zip(axes[:: len(datasets)], metrics, strict=True):
        axis.set_ylabel(axis_label(metric))
    legend(figure, axes[0])
    return figure


def similar_l0(tables: Tables) -> Figure | None:
    """Figure 15: mean L0 by layer of two suites, and what each explains."""
    rows = within_suites(where(tables.rows("strategies"), quantile=None))
    sets = [str(name) for (name,) in unique(rows, "source_suite")]
    if not 2 <= len(sets) <= len(DASHES) or DEFAULT not in sets:
        return None
    datasets = datasets_of(rows)
    figure, axes = panels(1 + len(datasets), 3.6)
    dashes = dict(zip(sets, DASHES, strict=False))
    for name in sets:
        layers = where(tables.rows("layers"), suite=name)
        at = [float(row["layer"] or 0) for row in layers]
        line(axes[0], at, layers, "mean_l0", color="#000000", linestyle=dashes[name], label=name)
    axes[0].set_title("mean L0")
    axes[0].set_xlabel("layer")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    for axis, dataset in zip(axes[1:], datasets, strict=True):
        for arm, strategy, name in unique(rows, "arm", "strategy", "source_suite"):
            style = cell_style(arm, strategy, rows)
            of_cell = where(rows, arm=arm, strategy=strategy, source_suite=name, dataset=dataset)
            label = f"{style['label']} ({name})"
            style |= {"label": label, "linestyle": dashes[name]}
            by_pair(axis, of_cell, "explained_variance", rows, **style)
        axis.set_title(f"explained variance, {dataset}")
        scale(axis, "explained_variance", [float(row["explained_variance"] or 0) for row in rows])
    legend(figure, axes[1])
    return figure


def quantiles(tables: Tables, metric: str) -> Figure | None:
    """Figures 16 and 17: partial matches, by layer and by the share of features permuted."""
    permuted = where(tables.rows("strategies"), strategy="permute")
    rows = [row for row in permuted if row["quantile"] is not None]
    if not rows or len(unique(rows, *SUITE_COLUMNS)) > 1:
        return None
    import matplotlib

    arms, datasets = arms_of(rows), datasets_of(rows)
    shares = [q for (q,) in unique(rows, "quantile")]
    pairs = unique(rows, "source_layer", "target_layer")
    named = pairs if len(pairs) <= 8 else [pairs[0], pairs[-1]]  # what a legend has room for
    figure, axes = panels(len(datasets), rows=2, height=3.4)
    every, of_first = (
        [float(r[metric] or 0) for r in some] for some in (rows, where(rows, arm=arms[0]))
    )
    colours = matplotlib.colormaps["viridis"]
    dashes, faint = ("-", ":", "--"), {"marker": ".", "linewidth": 0.9, "alpha": 0.6}
    kinds = [f"{kind} {arm}" for kind, arm in zip(("dotted", "dashed"), arms[1:], strict=False)]
    others = f"\n({', '.join(kinds)})" if kinds else ""
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, share in enumerate(shares):
            of_share = where(rows, arm=arms[0], dataset=dataset, quantile=share)
            colour = colours(0.9 * number / max(len(shares) - 1, 1))
            by_pair(axis, of_share, metric, rows, color=colour, label=f"q = {share:g}")
        axis.set_title(f"{dataset}, {arms[0]}")
        scale(axis, metric, of_first)
    for axis, dataset in zip(axes[len(datasets) :], datasets, strict=True):
        for number, (earlier, later) in enumerate(pairs):
            colour = colours(0.9 * number / max(len(pairs) - 1, 1))
            for arm, dash in zip(arms, dashes, strict=False):
                curve = where(
                    rows, arm=arm, dataset=dataset, source_layer=earlier, target_layer=later
                )
                curve.sort(key=lambda row: float(row["quantile"] or 0))
                at = [float(row["quantile"] or 0) for row in curve]
                hidden = "" if (earlier, later) in named else "_"
                style = {"label": f"{hidden}{earlier}→{later}"} if arm == arms[0] else faint
                line(axis, at, curve, metric, color=colour, linestyle=dash, **style)
        axis.set_xlabel(f"q, share permuted{others}")
        scale(axis, metric, every)
    for axis in axes[:: len(datasets)]:
        axis.set_ylabel(axis_label(metric))
    axes[0].legend(frameon=False, fontsize=7)
    axes[len(datasets)].legend(frameon=False, fontsize=7)
    return figure


def folding(tables: Tables) -> Figure | None:
    """Find-time against decode-time folding: differences of one switch at a time."""
    rows = [
        row
        for row in where(tables.rows("contrasts"), quantile=None, **OF_DEFAULT)
        if {row["arm"], row["against_arm"]} <= {"folded", "unfolded"}
    ]
    kinds = unique(rows, "arm", "strategy", "against_arm", "against_strategy")
    if len(kinds) < 4:
        return None
    datasets = datasets_of(rows)
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
            by_pair(axis, of_kind, metric, rows, color=colour, label=label, linestyle=dash)
        axis.set_title(dataset)
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_yscale("symlog", linthresh=0.5, linscale=1.5)
        axis.set_yticks([-10, -3, -1, -0.5, -0.2, 0, 0.2, 0.5, 1, 3, 10], minor=False)
        ends = [float(row[f"{metric}_{end}"] or row[metric] or 0) for row in rows for end in _ENDS]
        axis.set_ylim(1.1 * min(*ends, -0.1), 1.1 * max(*ends, 0.1))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("gain in explained variance by folding")
    legend(figure, axes[0], columns=2)
    return figure


_ENDS = ("low", "high")
_UNITS = {"permute": "threshold", "permute_raw": "norm"}


def planted(tables: Tables) -> Figure | None:
    """Recall and explained variance on planted SAEs, in two gauges of their decoder vectors."""
    rows = tables.rows("planted")
    if not rows:
        return None
    figure, axes = panels(3)
    metrics = (("recall", "permute"), ("explained_variance", "permute"))
    metrics += (("explained_variance", "permute_raw"),)
    dashes = dict(
        zip([name for (name,) in unique(rows, "source_suite")], ("-", "--"), strict=False)
    )
    for axis, (metric, strategy) in zip(axes, metrics, strict=True):
        shown = where(rows, strategy=strategy)
        for (name, dash), arm in product(dashes.items(), arms_of(rows)):
            of_arm = where(shown, arm=arm, source_suite=name)
            style = arm_style(arm, rows)
            label = arm if name == DEFAULT else f"{arm}, {name.replace('_', ' ')}"
            by_pair(axis, of_arm, metric, rows, **{**style, "linestyle": dash, "label": label})
        if metric == "explained_variance":
            scale(axis, metric, [float(row[metric] or 0) for row in shown])
        else:
            axis.set_ylim(-0.03, 1.03)
        units = "" if metric == "recall" else f", decoded by {_UNITS[strategy]}"
        axis.set_title(metric.replace("_", " ") + units)
    legend(figure, axes[0], columns=5)
    return figure


def paths(tables: Tables) -> Figure | None:
    """Figures 18 and 19 without explanations: features followed through the layers.

    Of several partners the grid shows the one that carries the path on, and the curve the mean over
    all of them.
    """
    rows = where(tables.rows("paths"), **OF_DEFAULT)
    if not rows:
        return None
    import matplotlib

    arms, metric = arms_of(rows), "jaccard" if "jaccard" in rows[0] else "cosine_W_dec"
    shown = main_line(where(rows, arm=arms[0]))
    layers = sorted(
        {layer for row in shown for layer in (row["source_layer"], row["target_layer"])}
    )
    n_paths = 1 + max(int(row["path"] or 0) for row in shown)
    figure, (grid, means) = panels(2, 0.9 + 0.27 * max(n_paths, 6))
    grid.get_gridspec().set_width_ratios([1.1 * len(layers), 3])  # type: ignore[union-attr]
    figure.set_figwidth(4.5 + len(layers))
    colours = matplotlib.colormaps["viridis"]
    for row in shown:
        x = layers.index(row["source_layer"])
        value = float(row[metric] or 0)
        grid.plot([x, x + 1], [row["path"]] * 2, color=colours(value), linewidth=9, zorder=1)  # type: ignore[list-item]
        for at, feature in ((x, row["source_feature"]), (x + 1, row["target_feature"])):
            grid.text(at, row["path"], str(feature), ha="center", va="center", fontsize=7,  # type: ignore[arg-type]
                      bbox={"facecolor": "white", "edgecolor": "#CCCCCC", "pad": 1.5})  # fmt: skip
    grid.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    grid.set_yticks(range(n_paths), [f"path {n}" for n in range(n_paths)], fontsize=7)
    grid.set_ylim(n_paths - 0.4, -0.6)
    grid.grid(False)
    label = {"jaccard": "Jaccard index", "cosine_W_dec": "cosine of decoder vectors"}[metric]
    figure.colorbar(
        matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours),
        ax=grid, label=f"{label} of the step ({arms[0]})", fraction=0.03,
    )  # fmt: skip
    for arm in arms:
        of_arm = where(rows, arm=arm)
        by_step: list[Row] = [
            {**of_step[0], metric: fmean(float(row[metric] or 0) for row in of_step)}
            for pair in unique(of_arm, "source_layer", "target_layer")
            if (of_step := where(of_arm, source_layer=pair[0], target_layer=pair[1]))
        ]
        for row in by_step:  # the intervals are of single paths
            row.pop(f"{metric}_low", None)
        by_pair(means, by_step, metric, rows, **arm_style(arm, rows))
    means.set_title(f"mean {label}")
    means.set_ylim(-0.03, 1.03)
    means.legend(frameon=False)
    return figure

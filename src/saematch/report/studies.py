"""Figures of single studies, whose x axis is not the layer alone."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from saematch.core.pairs import DEFAULT, OF_DEFAULT
from saematch.core.tables import Tables
from saematch.report.frames import (
    arms_of,
    datasets_of,
    has,
    layer_pairs,
    numbers,
    skipped_layers,
    table,
    unique,
    values_of,
    where,
    with_metric,
    within_suites,
)
from saematch.report.judged import judge_bounds
from saematch.report.style import (
    DASHES,
    arm_style,
    axis_label,
    by_pair,
    cell_style,
    from_zero,
    legend,
    line,
    panels,
    scale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_MARKERS = ("o", "s", "^", "D", "v", "P")
_SIGNS = ("●", "■", "▲", "◆", "▼", "✚")
"""Markers of source layers, and the same as signs in a label."""
MOST_SUITES = 3
"""Largest number of suites in a figure of two or more."""


def feature_mse(tables: Tables) -> Figure | None:
    """Figure 5: distribution of the decoder's squared error over matched features."""
    histogram = where(table(tables, "feature_mse_histogram"), **OF_DEFAULT)
    if histogram.empty:
        return None
    pairs = layer_pairs(histogram)
    figure, axes = panels(len(pairs))
    for axis, (source, target) in zip(axes, pairs, strict=True):
        for arm in arms_of(histogram):
            bins = where(histogram, arm=arm, source_layer=source, target_layer=target)
            if bins.empty:  # the arm has no match of this pair
                continue
            edges = [*numbers(bins, "mse_low", 0.0), numbers(bins, "mse_high", 0.0)[-1]]
            style = arm_style(arm, histogram)
            look: Any = {name: style[name] for name in ("color", "linestyle", "label")}
            axis.stairs(list(bins["n_pairs"]), edges, linewidth=1.4, **look)
        axis.set_title(f"layers {source}→{target}")
        axis.set_xlabel("squared error of the folded decoder vector")
    axes[0].set_ylabel("matched pairs of features")
    legend(figure, *axes)
    return figure


def persistence(tables: Tables) -> Figure | None:
    """Figure 8: a feature against its match in each target layer."""
    matches = where(table(tables, "matches"), **OF_DEFAULT)
    strategies = where(skipped_layers(tables), **OF_DEFAULT)
    sources = values_of(matches, "source_layer")
    if len(layer_pairs(matches)) == len(sources) or len(matches) < 2:
        return None
    datasets = datasets_of(strategies)[:1]
    scores = ("judge_score", "agreement", "recall", "matching_score")
    metrics = [metric for metric in scores if has(matches, metric)]
    if not metrics and not datasets:
        return None
    figure, axes = panels(len(metrics) + len(datasets), 3.6)
    for axis, metric in zip(axes, metrics, strict=False):
        for arm in arms_of(matches):
            _by_distance(axis, where(matches, arm=arm), metric, sources, arm_style(arm, matches))
        axis.set_title(tables.column(metric).with_unit)
        if metric == "judge_score":
            judge_bounds(axis, tables)
        else:
            axis.set_ylim(-0.03, 1.03)
    for axis, dataset in zip(axes[len(metrics) :], datasets, strict=True):
        metric = "explained_variance"
        cells = where(strategies, dataset=dataset, quantile=None)
        for arm, strategy in unique(cells, "arm", "strategy"):
            of_cell = where(cells, arm=arm, strategy=strategy)
            _by_distance(axis, of_cell, metric, sources, cell_style(arm, strategy, cells))
        axis.set_title(dataset)
        scale(axis, metric, numbers(cells, metric, 0.0))
        axis.set_ylabel(axis_label(tables.column(metric), axis))
    legend(figure, *axes)
    return figure


def _by_distance(
    axis: Axes, frame: DataFrame, metric: str, sources: list[int], style: dict[str, object]
) -> None:
    """Draw a metric against the distance in layers, a line for each source layer."""
    for number, source in enumerate(sources):
        of_source = with_metric(where(frame, source_layer=source), metric)
        distance = (of_source["target_layer"] - of_source["source_layer"]).tolist()
        label = None if number else style["label"]
        look = {**style, "label": label, "marker": _MARKERS[number % len(_MARKERS)]}
        line(axis, distance, of_source, metric, **look)
    signs = ", ".join(f"{sign} {layer}" for sign, layer in zip(_SIGNS, sources, strict=False))
    axis.set_xlabel(f"distance in layers (from layer: {signs})")


def sparsity(tables: Tables) -> Figure | None:
    """Figure 14: explained variance and change in loss against mean L0."""
    if "mean_l0" not in table(tables, "layers"):  # a run without co-activation
        return None
    cells = _with_l0(within_suites(where(skipped_layers(tables), quantile=None)), tables)
    if len(values_of(cells, "source_suite")) < 2 or len(layer_pairs(cells)) != 1:
        return None
    ticks = sorted(set(numbers(cells, "l0", 0.0)))
    if len(set(map(round, ticks))) < 2:  # as for one sparsity on two language models
        return None
    datasets = datasets_of(cells)
    figure, axes = panels(len(datasets), rows=2)
    metrics = ("explained_variance", "delta_loss")
    for axis, (metric, dataset) in zip(axes, product(metrics, datasets), strict=True):
        for arm, strategy in unique(cells, "arm", "strategy"):
            of_cell = where(cells, arm=arm, strategy=strategy, dataset=dataset)
            of_cell = of_cell.sort_values("l0", kind="stable")
            style = cell_style(arm, strategy, cells)
            line(axis, numbers(of_cell, "l0", 0.0).tolist(), of_cell, metric, **style)
        axis.set_title(dataset)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{value:.0f}" for value in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"mean L0 of layer {layer_pairs(cells)[0][0]}")
        scale(axis, metric, numbers(cells, metric, 0.0))
    for axis, metric in zip(axes[:: len(datasets)], metrics, strict=True):
        axis.set_ylabel(axis_label(tables.column(metric), axis))
    legend(figure, axes[0])
    return figure


def _with_l0(cells: DataFrame, tables: Tables) -> DataFrame:
    """Add the mean L0 of the source SAE as the column ``l0``."""
    if cells.empty:
        return cells
    names = {"suite": "source_suite", "layer": "source_layer", "mean_l0": "l0"}
    layers = table(tables, "layers")[list(names)].rename(columns=names)
    return cells.merge(layers, how="left", on=["source_suite", "source_layer"])


def similar_l0(tables: Tables) -> Figure | None:
    """Figure 15: mean L0 by layer of two suites, and the variance that each explains."""
    cells = within_suites(where(skipped_layers(tables), quantile=None))
    suites = values_of(cells, "source_suite")
    if not 2 <= len(suites) <= MOST_SUITES or DEFAULT not in suites:
        return None
    if "mean_l0" not in table(tables, "layers"):  # a run without co-activation
        return None
    datasets = datasets_of(cells)
    figure, axes = panels(1 + len(datasets), 3.6)
    dashes = dict(zip(suites, DASHES, strict=False))
    for suite, dash in dashes.items():
        layers = where(table(tables, "layers"), suite=suite)
        at = layers["layer"].tolist()
        line(axes[0], at, layers, "mean_l0", color="#000000", linestyle=dash, label=suite)
    axes[0].set_title("mean L0")
    axes[0].set_xlabel("layer")
    from_zero(axes[0])
    axes[0].legend(frameon=False)
    metric = "explained_variance"
    for axis, dataset in zip(axes[1:], datasets, strict=True):
        for arm, strategy, suite in unique(cells, "arm", "strategy", "source_suite"):
            of_cell = where(
                cells, arm=arm, strategy=strategy, source_suite=suite, dataset=dataset
            )  # fmt: skip
            style = cell_style(arm, strategy, cells)
            style |= {"label": f"{style['label']} ({suite})", "linestyle": dashes[suite]}
            by_pair(axis, of_cell, metric, cells, **style)
        axis.set_title(dataset)
        scale(axis, metric, numbers(cells, metric, 0.0))
    axes[1].set_ylabel(axis_label(tables.column(metric), axes[1]))
    legend(figure, axes[1])
    return figure

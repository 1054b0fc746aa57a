"""Figures of decoding through a match: partial matches, folding, planted SAEs."""

from __future__ import annotations

from itertools import cycle, product
from typing import TYPE_CHECKING

import numpy as np

from saematch.core.pairs import DEFAULT, OF_DEFAULT, SUITE_COLUMNS
from saematch.core.tables import Tables
from saematch.report.frames import (
    arms_of,
    datasets_of,
    layer_pairs,
    numbers,
    skipped_layers,
    table,
    unique,
    values_of,
    where,
)
from saematch.report.style import (
    COLOURS,
    MARKERS,
    arm_style,
    axis_label,
    by_pair,
    legend,
    line,
    panels,
    scale,
    symlog,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

UNITS = {"permute": "threshold", "permute_raw": "norm"}
"""Units in which a strategy decodes, by strategy."""


def quantiles(tables: Tables, metric: str) -> Figure | None:
    """Figures 16 and 17: partial matches, by layer and by the share of features permuted."""
    permuted = where(skipped_layers(tables), strategy="permute")
    partial = permuted if permuted.empty else permuted[permuted["quantile"].notna()]
    if partial.empty or len(unique(partial, *SUITE_COLUMNS)) > 1:
        return None
    datasets = datasets_of(partial)
    n = len(datasets)
    figure, axes = panels(n, rows=2, height=3.4)
    for upper, lower, dataset in zip(axes[:n], axes[n:], datasets, strict=True):
        _shares_by_layer(upper, partial, metric, dataset)
        _pairs_by_share(lower, partial, metric, dataset)
    for axis in axes[::n]:
        axis.set_ylabel(axis_label(tables.column(metric), axis))
    axes[0].legend(frameon=False, fontsize=7)
    axes[n].legend(frameon=False, fontsize=7)
    return figure


def _shares_by_layer(axis: Axes, partial: DataFrame, metric: str, dataset: str) -> None:
    """Draw the first arm's metric against the layer pair, a line for each share permuted."""
    arm = arms_of(partial)[0]
    shares = values_of(partial, "quantile")
    for colour, marker, share in zip(_colours(len(shares)), cycle(MARKERS), shares, strict=False):
        of_share = where(partial, arm=arm, dataset=dataset, quantile=share)
        style = {"color": colour, "marker": marker, "label": f"q = {share:g}"}
        by_pair(axis, of_share, metric, partial, **style)
    axis.set_title(f"{dataset}, {arm}")
    scale(axis, metric, numbers(where(partial, arm=arm), metric, 0.0))


def _pairs_by_share(axis: Axes, partial: DataFrame, metric: str, dataset: str) -> None:
    """Draw a metric against the share permuted, a line for each arm and layer pair."""
    arms, pairs = arms_of(partial), layer_pairs(partial)
    in_legend = (
        pairs if len(pairs) <= 8 else [pairs[0], pairs[-1]]
    )  # the legend has no room for more
    faint = {"marker": ".", "linewidth": 0.9, "alpha": 0.6}
    for colour, (source, target) in zip(_colours(len(pairs)), pairs, strict=True):
        for arm, dash in zip(arms, ("-", ":", "--"), strict=False):
            curve = where(
                partial, arm=arm, dataset=dataset, source_layer=source, target_layer=target
            ).sort_values("quantile", kind="stable")
            hidden = "" if (source, target) in in_legend else "_"
            style = {"label": f"{hidden}{source}→{target}"} if arm == arms[0] else faint
            at = numbers(curve, "quantile").tolist()
            line(axis, at, curve, metric, color=colour, linestyle=dash, **style)
    names = [f"{kind} {arm}" for kind, arm in zip(("dotted", "dashed"), arms[1:], strict=False)]
    others = f"\n({', '.join(names)})" if names else ""
    axis.set_xlabel(f"q, share permuted{others}")
    scale(axis, metric, numbers(partial, metric, 0.0))


def _colours(n: int) -> list[tuple[float, float, float, float]]:
    import matplotlib

    return [matplotlib.colormaps["viridis"](0.9 * k / max(n - 1, 1)) for k in range(n)]


def folding(tables: Tables) -> Figure | None:
    """Find-time against decode-time folding: differences of one switch at a time."""
    contrasts = where(table(tables, "contrasts"), quantile=None, **OF_DEFAULT)
    if contrasts.empty:
        return None
    arms = contrasts[["arm", "against_arm"]].isin(["folded", "unfolded"])
    strategies = contrasts[["strategy", "against_strategy"]].isin(list(UNITS))
    contrasts = contrasts[arms.all(axis=1) & strategies.all(axis=1)]
    switches = unique(contrasts, "arm", "strategy", "against_arm", "against_strategy")
    if len(switches) < 4:
        return None
    datasets = datasets_of(contrasts)
    figure, axes = panels(len(datasets), 3.6)
    metric = "explained_variance_difference"
    for axis, dataset in zip(axes, datasets, strict=True):
        for switch in switches:
            arm, strategy, against_arm, against_strategy = switch
            rows = where(contrasts, dataset=dataset, arm=arm, strategy=strategy,
                         against_arm=against_arm, against_strategy=against_strategy)  # fmt: skip
            style = _switch_style(arm, strategy, against_arm)
            by_pair(axis, rows, metric, contrasts, **style)
        axis.set_title(dataset)
        axis.axhline(0, color="#999999", linewidth=0.8)
        lowest, highest = _ends(contrasts, metric)
        symlog(axis, (1.1 * min(lowest, -0.1), 1.1 * max(highest, 0.1)), 1, 3)
    axes[0].set_ylabel("gain in explained variance by folding\n(symlog beyond ±1)")
    legend(figure, axes[0], columns=2)
    return figure


def _switch_style(arm: str, strategy: str, against_arm: str) -> dict[str, object]:
    """Return the style of a difference: between two arms, or between two decodings of one arm."""
    solid: dict[str, object] = {"linestyle": "-"}
    dashed: dict[str, object] = {"linestyle": "--", "markerfacecolor": "white"}
    if arm != against_arm:
        label = f"finding folded (decoded by {UNITS[strategy]})"
        look = solid if strategy == "permute" else dashed
        return {"color": COLOURS[0], "label": label, "marker": MARKERS[0], **look}
    label, look = f"decoding folded ({arm} match)", solid if arm == "folded" else dashed
    return {"color": COLOURS[5], "label": label, "marker": MARKERS[1], **look}


def _ends(frame: DataFrame, metric: str) -> tuple[float, float]:
    """Return the least and the greatest end of a metric's intervals, or value without one."""
    values = numbers(frame, metric, 0.0)
    low, high = (numbers(frame, f"{metric}_{end}") for end in ("low", "high"))
    least = np.where(np.isnan(low), values, low)
    greatest = np.where(np.isnan(high), values, high)
    return float(least.min()), float(greatest.max())


def planted(tables: Tables) -> Figure | None:
    """Recall and explained variance on planted SAEs, in two gauges of their decoder vectors."""
    rows = table(tables, "planted")
    if rows.empty:
        return None
    figure, axes = panels(3)
    explained = [("explained_variance", strategy) for strategy in UNITS]
    suites = dict(zip(values_of(rows, "source_suite"), ("-", "--"), strict=False))
    for axis, (metric, strategy) in zip(axes, [("recall", "permute"), *explained], strict=True):
        of_strategy = where(rows, strategy=strategy)
        for (suite, dash), arm in product(suites.items(), arms_of(rows)):
            label = arm if suite == DEFAULT else f"{arm}, {suite.replace('_', ' ')}"
            style = {**arm_style(arm, rows), "linestyle": dash, "label": label}
            by_pair(axis, where(of_strategy, arm=arm, source_suite=suite), metric, rows, **style)
        if metric == "explained_variance":
            scale(axis, metric, numbers(of_strategy, metric, 0.0))
            axis.set_title(f"decoded by {UNITS[strategy]}")
            axis.set_ylabel(axis_label(tables.column(metric), axis))
        else:
            axis.set_ylim(-0.03, 1.03)
            axis.set_title(metric)
    legend(figure, axes[0], columns=5)
    return figure

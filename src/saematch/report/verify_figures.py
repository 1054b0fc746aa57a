"""Figures of the evaluation ``verify``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from saematch.core.pairs import PAIR_COLUMNS
from saematch.core.tables import Tables
from saematch.report.frames import (
    arms_of,
    layer_pairs,
    numbers,
    of_one_suite,
    table,
    values_of,
    where,
)
from saematch.report.style import arm_style, by_pair, legend, line, panels
from saematch.report.verify import HINDSIGHT, LEARNED, METRICS, NEAR_MISS, matched_arms, removals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

GREY = {"color": "#777777", "linewidth": 0.9, "markersize": 3.5}
REFERENCE_STYLES = {
    NEAR_MISS: {"label": "near miss", "linestyle": "--", "marker": "s"},
    LEARNED: {"label": "learned partner", "linestyle": "-.", "marker": "D"},
    HINDSIGHT: {"label": "best in hindsight", "linestyle": "-", "marker": "^"},
}
RANDOM_STYLE = {**GREY, "label": "random target", "linestyle": ":", "marker": "x"}
MAX_PANELS = 4
"""Largest number of pairs that each get a panel; with more pairs, one panel has their mean."""
ACROSS = 3
"""Largest number of panels side by side, of a figure with a panel for each arm."""


def effect(tables: Tables) -> Figure | None:
    """Effect and off rate of one partner by layer, with controls and ceilings."""
    rows = where(of_one_suite(removals(tables)), k=1)
    if not matched_arms(rows):
        return None
    figure, axes = panels(2)
    for axis, metric in zip(axes, reversed(METRICS), strict=True):
        _by_layer(axis, rows, metric)
        axis.set_title(tables.column(metric).with_unit)
        axis.set_ylim(min(-0.03, numbers(rows, metric, 0.0).min() - 0.03), 1.03)
    legend(figure, axes[0])
    return figure


def _by_layer(axis: Axes, rows: DataFrame, metric: str) -> None:
    """Draw each arm with its interval, and controls and ceilings as thin lines without one."""
    arms = rows[rows["arm"].isin(matched_arms(rows))]
    for arm in arms_of(arms):
        by_pair(axis, where(rows, arm=arm), metric, rows, **arm_style(arm, arms))
    first = where(rows, arm=arms_of(arms)[0])
    by_pair(axis, first[[*PAIR_COLUMNS, f"{metric}_random"]], f"{metric}_random", rows,
            **RANDOM_STYLE)  # fmt: skip
    for name, style in REFERENCE_STYLES.items():
        of_name = where(rows, arm=name)
        by_pair(axis, of_name[[*PAIR_COLUMNS, metric]], metric, rows, **GREY, **style)


def partners(tables: Tables) -> Figure | None:
    """Off rate against the number of partners, by pair or as the mean over many pairs."""
    rows = of_one_suite(removals(tables))
    if not matched_arms(rows):
        return None
    pairs = layer_pairs(rows)
    if len(pairs) > MAX_PANELS:
        metrics = ["off_rate", "off_rate_random"]
        means = rows.groupby(["arm", "k"], sort=False, as_index=False)[metrics].mean()
        titled = {f"mean over {len(pairs)} pairs": means}
    else:
        titled = {
            f"layers {source}→{target}": where(rows, source_layer=source, target_layer=target)
            for source, target in pairs
        }
    figure, axes = panels(len(titled), 3.4)
    for axis, (title, frame) in zip(axes, titled.items(), strict=True):
        _by_partners(axis, frame)
        axis.set_title(title)
    axes[0].set_ylabel(tables.column("off_rate").with_unit)
    legend(figure, *axes)
    return figure


def _by_partners(axis: Axes, frame: DataFrame) -> None:
    """Draw each arm, as many random targets as partners, and the best target in hindsight."""
    arms = frame[frame["arm"].isin(matched_arms(frame))]
    for arm in arms_of(arms):
        curve = where(arms, arm=arm).sort_values("k")
        at = curve["k"].tolist()
        style = {**arm_style(arm, arms), "linestyle": "-"}
        line(axis, at, curve, "off_rate", **style)
        random = curve[["off_rate_random"]]
        dashed = {"linestyle": "--", "marker": ".", "label": "_random"}
        line(axis, at, random, "off_rate_random", **{**style, **dashed})
    for value in numbers(where(frame, arm=HINDSIGHT), "off_rate"):
        axis.axhline(value, color="#777777", linewidth=0.9, label="best in hindsight")
    axis.set_xscale("log")
    ks = sorted(values_of(arms, "k"))
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("partners, k (dashed: k random targets)")
    axis.set_ylim(-0.03, 1.03)


def changes(tables: Tables) -> Figure | None:
    """Change of the target's pre-activation: predicted by the weights, and measured."""
    points = of_one_suite(table(tables, "verify_changes"))
    arms = matched_arms(points)
    if not arms:
        return None
    direct = of_one_suite(table(tables, "verify_direct"))
    rows = math.ceil(len(arms) / ACROSS)
    columns = math.ceil(len(arms) / rows)
    figure, axes = panels(columns, 3.3, rows)
    for axis, arm in zip(axes, arms, strict=False):
        slopes = numbers(where(direct, arm=arm), "slope") if len(direct) else np.array([])
        _scatter(axis, where(points, arm=arm), slopes, arm_style(arm, points)["color"])
        axis.set_title(f"{arm}\n{axis.get_title()}")
        axis.set_xlabel("predicted change of the pre-activation")
    for axis in axes[len(arms) :]:
        axis.axis("off")
    for axis in axes[::columns]:
        axis.set_ylabel("measured change")
    legend(figure, axes[0])
    return figure


def _scatter(axis: Axes, points: DataFrame, slopes: np.ndarray, colour: object) -> None:
    """Draw the events, the identity and the mean slope; the title counts events out of range."""
    both = np.stack([numbers(points, "predicted"), numbers(points, "measured")])
    # The few largest changes would hide the others
    low, high = np.nanquantile(both, [0.005, 0.995])
    margin = 0.05 * (high - low) or 1.0
    ends = np.array([min(low, 0.0) - margin, max(high, 0.0) + margin])
    n_outside = int(((both < ends[0]) | (both > ends[1])).any(axis=0).sum())
    axis.plot(*both, color=colour, linestyle="none", marker=".", markersize=3.5, alpha=0.35)
    axis.plot(ends, ends, color="#999999", linewidth=0.9, linestyle="--", label="identity")
    remarks = [f"{n_outside} of {len(points)} events are outside"] if n_outside else []
    if len(slopes) and not np.isnan(slopes).all():
        slope = float(np.nanmean(slopes))
        axis.plot(ends, slope * ends, color="#000000", linewidth=1.2, label="fitted slope")
        remarks.insert(0, f"slope {slope:.2f}")
    axis.set_title(", ".join(remarks))
    axis.set_xlim(*ends)
    axis.set_ylim(*ends)

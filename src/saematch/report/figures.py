"""Figures of a run, drawn from its tables; what is shown by layer stands here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.core.errors import InputError
from saematch.core.pairs import DEFAULT, OF_DEFAULT, SUITE_COLUMNS, suites_of
from saematch.core.tables import Row, Tables
from saematch.report import judged, studies
from saematch.report.style import (
    arm_style,
    arms_of,
    axis_label,
    by_pair,
    cell_style,
    datasets_of,
    dots,
    legend,
    line,
    of_one_suite,
    panels,
    save,
    scale,
    unique,
    where,
)
from saematch.report.training import training_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def draw_figures(tables: Tables, names: Sequence[str] | None, folder: Path) -> dict[str, Path]:
    """Draw the named figures, or all that the tables allow; return the PNG files by name.

    If a named figure cannot be drawn, or if none can, a warning says what is missing.
    """
    drawn = {}
    possible = FIGURES if "matches" in tables else OF_TRAINING
    for name in possible if names is None else names:
        figure = possible[name](tables) if name in possible else None
        if figure is not None:
            drawn[name] = save(figure, folder / f"{name}.png")
        elif names is not None:
            log.warning("figure %s was not drawn: it needs %s", name, NEEDS[name])
    if names is None and not drawn:
        needs = "; ".join(f"{name} needs {NEEDS[name]}" for name in possible)
        log.warning("no figure was drawn: %s", needs)
    return drawn


def check_figures(names: Sequence[str] | None) -> None:
    """Refuse a figure that there is not."""
    known = [*FIGURES, *OF_TRAINING]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"unknown figure {unknown[0]!r}: choose among {', '.join(known)}")


def norms(tables: Tables) -> Figure | None:
    """Figure 1: norms and thresholds by layer; change of norms of states and decoder vectors."""
    layers = [row for row in tables.rows("layers") if row["suite"] == DEFAULT]
    rows = where(tables.rows("matches"), **OF_DEFAULT)
    unknown = any(row.get("mean_norm") is None for row in layers)
    if len(layers) < 2 or unknown or not rows:
        return None
    figure, (left, middle, right) = panels(3)
    at = [float(row["layer"] or 0) for row in layers]
    line(left, at, layers, "mean_norm", color="#000000")
    left.set_title("mean norm of the hidden state")
    line(middle, at, layers, "threshold_mean", color="#000000")
    middle.set_title("mean threshold")
    for axis in (left, middle):
        axis.set_ylim(bottom=0)
        axis.set_xlabel("layer")
    by_layer = {row["layer"]: float(row["mean_norm"] or 0) for row in layers}
    each = {(row["source_layer"], row["target_layer"]): row for row in rows}
    changes: list[Row] = [
        {**row, "change": by_layer[target] - by_layer[source]}
        for (source, target), row in each.items()
    ]
    by_pair(right, changes, "change", rows, color="#000000", label="hidden state")
    for number, arm in enumerate(arms_of(rows)):
        of_arm: list[Row] = [
            {
                **row,
                "decoder_norm_change_low": row["decoder_norm_change_q25"],
                "decoder_norm_change_high": row["decoder_norm_change_q75"],
            }
            for row in where(rows, arm=arm)
        ]
        style = arm_style(arm, rows)
        label = f"decoder vectors ({arm}; band: quartiles)" if not number else arm
        by_pair(right, of_arm, "decoder_norm_change", rows, **{**style, "label": label})
    right.set_title("change of norm from layer to layer")
    legend(figure, right)
    return figure


def mse(tables: Tables) -> Figure | None:
    """Figure 3: squared error of matched features by part."""
    rows = of_one_suite(tables.rows("matches"))
    if not _by_layer(rows):
        return None
    figure, axes = panels(3)
    for axis, part in zip(axes, ("W_enc", "b_enc", "W_dec"), strict=True):
        for arm in arms_of(rows):
            by_pair(axis, where(rows, arm=arm), f"mse_{part}", rows, **arm_style(arm, rows))
        axis.set_title(part)
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes[0].set_ylabel("mean squared error, folded parameters")
    legend(figure, axes[0])
    return figure


def matching(tables: Tables) -> Figure | None:
    """Figures 7 (right) and 12: recall, matching score and Jaccard index."""
    rows = of_one_suite(tables.rows("matches"))
    known = ("recall", "matching_score", "jaccard")
    shown = [m for m in known if any(row.get(m) is not None for row in rows)] or ["value"]
    one_pair = len(unique(rows, "source_layer", "target_layer")) == 1
    if not (one_pair or _by_layer(rows)):
        return None
    figure, axes = panels(len(shown))
    for number, (axis, metric) in enumerate(zip(axes, shown, strict=True)):
        if one_pair:
            colours = [arm_style(str(row["arm"]), rows)["color"] for row in rows]
            dots(axis, rows, [str(r["arm"]) if not number else "" for r in rows], metric, colours)
        else:
            for arm in arms_of(rows):
                by_pair(axis, where(rows, arm=arm), metric, rows, **arm_style(arm, rows))
        pair = f", {rows[0]['source_layer']}→{rows[0]['target_layer']}" if one_pair else ""
        if one_pair and suites_of(rows[0]) != DEFAULT:
            pair += f" {suites_of(rows[0])}"
        axis.set_title(axis_label(metric) + pair)
        if metric != "value":
            (axis.set_xlim if one_pair else axis.set_ylim)(-0.03, 1.03)
    if not one_pair:
        legend(figure, axes[0])
    return figure


def _strategies(tables: Tables, metric: str) -> Figure | None:
    """Figures 10 and 11: what happens when layers are skipped, by layer and data set."""
    rows = where(tables.rows("strategies"), quantile=None)
    if not _by_layer(rows) or len(unique(rows, *SUITE_COLUMNS)) > 1:
        return None
    datasets = datasets_of(rows)
    figure, axes = panels(len(datasets), 3.9)
    values = [v for row in rows if math.isfinite(v := float(row[metric] or 0))]
    for axis, dataset in zip(axes, datasets, strict=True):
        for arm, strategy in unique(rows, "arm", "strategy"):
            of_cell = where(rows, arm=arm, strategy=strategy, dataset=dataset)
            by_pair(axis, of_cell, metric, rows, **cell_style(arm, strategy, rows))
        axis.set_title(dataset)
        scale(axis, metric, values)
    axes[0].set_ylabel(axis_label(metric))
    legend(figure, axes[0])
    return figure


def _by_layer(rows: Sequence[Row]) -> bool:
    """Whether there are rows, and each pair of layers starts at another layer."""
    pairs = unique(rows, "source_layer", "target_layer")
    return 0 < len(pairs) == len({start for start, _ in pairs})


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "norms": norms,
    "mse": mse,
    "matching": matching,
    "explained_variance": lambda tables: _strategies(tables, "explained_variance"),
    "delta_loss": lambda tables: _strategies(tables, "delta_loss"),
    "feature_mse": studies.feature_mse,
    "persistence": studies.persistence,
    "sparsity": studies.sparsity,
    "similar_l0": studies.similar_l0,
    "quantiles": lambda tables: studies.quantiles(tables, "explained_variance"),
    "quantiles_loss": lambda tables: studies.quantiles(tables, "delta_loss"),
    "folding": studies.folding,
    "paths": studies.paths,
    "planted": studies.planted,
    "judge_layers": judged.judge_layers,
    "judge_controls": judged.judge_controls,
    "mse_by_label": judged.mse_by_label,
    "explained_pairs": judged.explained_pairs,
    "explained_paths": judged.explained_paths,
}
"""By name; each returns None where the tables do not allow it."""

OF_TRAINING: dict[str, Callable[[Tables], Figure | None]] = {"training": training_curves}
"""Figures of a run that trains SAEs."""

_BY_LAYER = "pairs that each start at another layer, in one suite or one pair of suites"
NEEDS = {
    "norms": "at least two layers and a run that reads texts",
    "mse": _BY_LAYER,
    "matching": _BY_LAYER,
    "explained_variance": f"the evaluation skipping, and {_BY_LAYER}",
    "delta_loss": f"the evaluation skipping, and {_BY_LAYER}",
    "feature_mse": "the evaluation features",
    "persistence": "layers that are matched with several others (pairing=starts)",
    "sparsity": "the evaluation skipping, one pair of layers and several suites",
    "similar_l0": "the evaluation skipping and two suites (selection=similar_l0)",
    "quantiles": "the evaluation skipping and an arm with quantiles",
    "quantiles_loss": "the evaluation skipping and an arm with quantiles",
    "folding": "the evaluation skipping and the arms folded and unfolded, each with two decodings",
    "paths": "the evaluation paths",
    "planted": "the evaluation planted",
    "judge_layers": "a judge, and pairs of layers that each start at another layer",
    "judge_controls": "a judge that gave at least one label",
    "mse_by_label": "a judge that gave at least one label, and at most 8 pairs of layers",
    "explained_pairs": "the evaluation features and explanations",
    "explained_paths": "the evaluation paths and explanations",
    "training": "the task train_saes",
}
"""What each figure is drawn from, for the message that says why it is missing."""

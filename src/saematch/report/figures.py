"""Figures of a run, drawn from its tables; this file has those by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.pairs import DEFAULT, OF_DEFAULT, PAIR_COLUMNS, SUITE_COLUMNS, suites_label
from saematch.core.progress import progress
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report import decoding, judged, leaderboard, paths, studies, verify_figures
from saematch.report.captions import INTERVALS, caption_text
from saematch.report.frames import (
    arms_of,
    datasets_of,
    has,
    layer_pairs,
    numbers,
    of_one_suite,
    skipped_layers,
    table,
    unique,
    where,
    with_metric,
)
from saematch.report.metrics import other_metrics
from saematch.report.style import (
    arm_style,
    axis_label,
    by_pair,
    cell_style,
    dots,
    from_zero,
    legend,
    line,
    panels,
    save,
    scale,
)
from saematch.report.training import training_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

log = logging.getLogger(__name__)


def draw_figures(
    tables: Tables, names: Sequence[str] | None, folder: Path, label: str = ""
) -> dict[str, Path]:
    """Draw the named figures, or all that the tables allow; return the PNG files by name.

    Each figure shows ``label``, and ``captions.md`` has their captions. A warning names the missing
    numbers if a named figure, or every figure, cannot be drawn.
    """
    drawn = {}
    possible = FIGURES if "matches" in tables else OF_TRAINING
    chosen = list(possible if names is None else names)
    with progress("draw figures", len(chosen), "figure") as bar:
        for name in chosen:
            figure = possible[name](tables) if name in possible else None
            if figure is not None:
                drawn[name] = save(figure, folder / f"{name}.png", label)
            elif names is not None:
                log.warning("figure %s was not drawn: it needs %s", name, NEEDS[name])
            bar.advance()
    if drawn:
        paragraphs = filter(None, [label, *map(caption_text, drawn), INTERVALS])
        with replacing(folder / "captions.md") as part:
            part.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    if names is None and not drawn:
        needs = "; ".join(f"{name} needs {NEEDS[name]}" for name in possible)
        log.warning("no figure was drawn: %s", needs)
    return drawn


def run_label(results: Results, run_id: str) -> str:
    """Return model, SAEs and run in one line, as ``gemma-2-2b · gemma-scope-2b-pt-res · mse/a``."""
    origins = results.provenance["saes"].values()
    models = dict.fromkeys(origin["model_name"] for origin in origins)
    known = [name for name in models if name] or [results.provenance["model"]["name"]]
    releases = list(dict.fromkeys(origin["release"] for origin in origins))
    rest = [f"and {len(releases) - 2} more"] if len(releases) > 2 else []
    saes = ", ".join([*releases[:2], *rest])
    return " · ".join(filter(None, [", ".join(known), saes, f"{results.name}/{run_id}"]))


def check_figures(names: Sequence[str] | None) -> None:
    """Refuse the name of a figure that does not exist."""
    existing = [*FIGURES, *OF_TRAINING]
    unknown = [name for name in names or () if name not in existing]
    if unknown:
        raise InputError(f"unknown figure {unknown[0]!r}: choose among {', '.join(existing)}")


def norms(tables: Tables) -> Figure | None:
    """Figure 1: norms and thresholds by layer; change of norms of states and decoder vectors."""
    layers = where(table(tables, "layers"), suite=DEFAULT)
    matches = where(table(tables, "matches"), **OF_DEFAULT)
    if len(layers) < 2 or "mean_norm" not in layers or layers["mean_norm"].isna().any():
        return None
    if matches.empty:
        return None
    figure, (left, middle, right) = panels(3)
    at = layers["layer"].tolist()
    line(left, at, layers, "mean_norm", color="#000000")
    left.set_title("mean norm of the hidden state")
    line(middle, at, layers, "threshold_mean", color="#000000")
    middle.set_title("mean threshold")
    for axis in (left, middle):
        from_zero(axis)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    norm = layers.set_index("layer")["mean_norm"]
    changes = matches.drop_duplicates(["source_layer", "target_layer"])
    change = changes["target_layer"].map(norm) - changes["source_layer"].map(norm)
    changes = changes.assign(change=change)
    by_pair(right, changes, "change", matches, color="#000000", label="hidden state")
    vectors = matches.rename(
        columns={
            "decoder_norm_change_q25": "decoder_norm_change_low",
            "decoder_norm_change_q75": "decoder_norm_change_high",
        }
    )
    for number, arm in enumerate(arms_of(matches)):
        label = arm if number else f"decoder vectors ({arm}; band: quartiles)"
        style = {**arm_style(arm, matches), "label": label}
        by_pair(right, where(vectors, arm=arm), "decoder_norm_change", matches, **style)
    right.set_title("change of norm from layer to layer")
    legend(figure, right)
    return figure


def mse(tables: Tables) -> Figure | None:
    """Figure 3: squared error of matched features by part."""
    matches = of_one_suite(table(tables, "matches"))
    if not _by_layer(matches):
        return None
    figure, axes = panels(3)
    for axis, part in zip(axes, ("W_enc", "b_enc", "W_dec"), strict=True):
        for arm in arms_of(matches):
            style = arm_style(arm, matches)
            by_pair(axis, where(matches, arm=arm), f"mse_{part}", matches, **style)
        axis.set_title(part)
        from_zero(axis)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes[0].set_ylabel("squared error (folded)")
    legend(figure, axes[0])
    return figure


def matching(tables: Tables) -> Figure | None:
    """Figures 7 (right) and 12: recall, matching score and Jaccard index."""
    matches = of_one_suite(table(tables, "matches"))
    one_pair = len(layer_pairs(matches)) == 1
    if not (one_pair or _by_layer(matches)):
        return None
    scores = ("recall", "matching_score", "jaccard")
    metrics = [metric for metric in scores if has(matches, metric)] or ["value"]
    figure, axes = panels(len(metrics))
    for number, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
        if one_pair:
            arms = list(matches["arm"])
            colours = [arm_style(arm, matches)["color"] for arm in arms]
            dots(axis, matches, ["" for _ in arms] if number else arms, metric, colours)
        else:
            for arm in arms_of(matches):
                by_pair(axis, where(matches, arm=arm), metric, matches, **arm_style(arm, matches))
        title = tables.column(metric).with_unit
        axis.set_title(title + _place(matches) if one_pair else title)
        if metric != "value":
            (axis.set_xlim if one_pair else axis.set_ylim)(-0.03, 1.03)
    if not one_pair:
        legend(figure, axes[0])
    return figure


def _place(matches: DataFrame) -> str:
    """Return the only layer pair of a table, for a title; with suites other than the default."""
    ((source, target),) = layer_pairs(matches)
    suites = suites_label(*unique(matches, *SUITE_COLUMNS)[0])
    return f", {source}→{target}" + ("" if suites == DEFAULT else f" {suites}")


def _strategies(tables: Tables, metric: str) -> Figure | None:
    """Figures 10 and 11: a metric of skipped layers, by layer and data set."""
    cells = where(skipped_layers(tables), quantile=None)
    if not _by_layer(cells) or len(unique(cells, *SUITE_COLUMNS)) > 1:
        return None
    datasets = datasets_of(cells)
    figure, axes = panels(len(datasets), 3.9)
    for axis, dataset in zip(axes, datasets, strict=True):
        for arm, strategy in unique(cells, "arm", "strategy"):
            of_cell = where(cells, arm=arm, strategy=strategy, dataset=dataset)
            by_pair(axis, of_cell, metric, cells, **cell_style(arm, strategy, cells))
        axis.set_title(dataset)
        scale(axis, metric, numbers(cells, metric, 0.0))
    axes[0].set_ylabel(axis_label(tables.column(metric), axes[0]))
    legend(figure, axes[0])
    return figure


def others(tables: Tables) -> Figure | None:
    """Logged metrics of evaluations of other packages, by layer pair and arm."""
    metrics = [
        (_by_pair_and_arm(tables[name], column.name), column)
        for name, column in other_metrics(tables)
        if {*PAIR_COLUMNS, "arm"} <= set(tables[name])
    ]
    metrics = [(frame, column) for frame, column in metrics if len(frame)]
    if not metrics:
        return None
    figure, axes = panels(len(metrics))
    for axis, (frame, column) in zip(axes, metrics, strict=True):
        for arm in arms_of(frame):
            by_pair(axis, where(frame, arm=arm), column.name, frame, **arm_style(arm, frame))
        axis.set_title(column.with_unit)
    legend(figure, *axes)
    return figure


def _by_pair_and_arm(frame: DataFrame, metric: str) -> DataFrame:
    """Return a row for each pair and arm, the mean if there are several, of one suite."""
    frame = of_one_suite(with_metric(frame, metric))
    keys = [*PAIR_COLUMNS, "arm"]
    if frame.empty or not frame.duplicated(keys).any():
        return frame
    return frame.groupby(keys, sort=False, as_index=False)[metric].mean()


def _by_layer(frame: DataFrame) -> bool:
    """Whether there are rows, and each pair of layers starts at another layer."""
    pairs = layer_pairs(frame)
    return 0 < len(pairs) == len({source for source, _ in pairs})


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
    "quantiles": lambda tables: decoding.quantiles(tables, "explained_variance"),
    "quantiles_loss": lambda tables: decoding.quantiles(tables, "delta_loss"),
    "folding": decoding.folding,
    "paths": paths.paths,
    "planted": decoding.planted,
    "judge_layers": judged.judge_layers,
    "judge_controls": judged.judge_controls,
    "mse_by_label": judged.mse_by_label,
    "explained_pairs": paths.explained_pairs,
    "explained_paths": paths.explained_paths,
    "effect": verify_figures.effect,
    "partners": verify_figures.partners,
    "changes": verify_figures.changes,
    "leaderboard": leaderboard.leaderboard,
    "others": others,
}
"""Figures by name; each function returns None if the tables lack its numbers."""

OF_TRAINING: dict[str, Callable[[Tables], Figure | None]] = {"training": training_curves}
"""Figures of a run that trains SAEs."""

_BY_LAYER = "layer pairs that start at different layers, in one suite or one pair of suites"
NEEDS = {
    "norms": "at least two layers and a run that reads texts",
    "mse": _BY_LAYER,
    "matching": _BY_LAYER,
    "explained_variance": f"the evaluation skipping, and {_BY_LAYER}",
    "delta_loss": f"the evaluation skipping, and {_BY_LAYER}",
    "feature_mse": "the evaluation features",
    "persistence": "source layers with several target layers (pairing=starts)",
    "sparsity": "the evaluation skipping, one layer pair, and several suites of different mean L0",
    "similar_l0": "the evaluation skipping and two suites (selection=similar_l0)",
    "quantiles": "the evaluation skipping and an arm with quantiles",
    "quantiles_loss": "the evaluation skipping and an arm with quantiles",
    "folding": "the evaluation skipping and the arms folded and unfolded, each with two decodings",
    "paths": "the evaluation paths",
    "planted": "the evaluation planted",
    "judge_layers": "a judge, and layer pairs that start at different layers",
    "judge_controls": "a judge that gave at least one label",
    "mse_by_label": "a judge that gave at least one label, and at most 8 layer pairs",
    "explained_pairs": "the evaluation features and explanations",
    "explained_paths": "the evaluation paths and explanations",
    "effect": "the evaluation verify",
    "partners": "the evaluation verify",
    "changes": "the evaluation verify",
    "leaderboard": "the evaluation leaderboard",
    "others": "an evaluation of another package with a logged metric of pairs and arms",
    "training": "the task train_saes",
}
"""Requirements of each figure, for the message about a figure that was not drawn."""

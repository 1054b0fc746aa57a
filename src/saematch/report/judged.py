"""Figures of a judge's verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from saematch.core.pairs import NO_ARM, OF_DEFAULT
from saematch.core.tables import Tables, rows_of
from saematch.judge.verdicts import SCORES, UNSCORED
from saematch.report.frames import (
    among,
    arms_of,
    layer_pairs,
    numbers,
    table,
    where,
    with_metric,
)
from saematch.report.style import (
    BASELINES,
    COLOURS,
    HATCHES,
    MARKERS,
    arm_style,
    by_pair,
    dots,
    legend,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LABEL_COLOURS = {"SAME": "#0072B2", "MAYBE": "#56B4E9", "DIFFERENT": "#D55E00"}
UNSCORED_COLOUR = "#CCCCCC"
CONTROL_LABELS = {
    "random": "random pairs",
    "identity": "equal index",
    "ceiling": "same feature twice",
    "paraphrase": "paraphrase",
}
AGAIN_LABELS = {"swapped": "order swapped", "repeated": "asked again", "second": "second judge"}
ROLES = ("random", "identity", "pair", "ceiling", "paraphrase")
"""Roles in the order of the figure of controls."""


def judge_layers(tables: Tables) -> Figure | None:
    """Figures 4 and 7 (left): labels by layer pair for each arm, and the mean score."""
    scores = where(table(tables, "judge_scores"), role="pair", **OF_DEFAULT)
    scores = with_metric(scores, "source_layer")
    pairs = layer_pairs(scores)
    if not pairs or len(pairs) > len({source for source, _ in pairs}):
        return None
    arms = arms_of(scores)
    figure, axes = panels(len(arms) + 1, 3.6)
    for axis, arm in zip(axes, arms, strict=False):
        _bars(axis, where(scores, arm=arm))
        axis.set_title(arm)
    axes[0].set_ylabel("judgements")
    mean = axes[-1]
    matches = where(table(tables, "matches"), **OF_DEFAULT)  # in the order of the run
    panel = among(matches, scores[["source_layer", "target_layer"]])
    for arm in arms:
        by_pair(mean, where(scores, arm=arm), "judge_score", panel, **arm_style(arm, scores))
    judge_bounds(mean, tables)
    mean.set_title(f"mean {tables.column('judge_score').label}\n(bands: over paths)")
    legend(figure, axes[0], mean)
    return figure


def _bars(axis: Axes, scores: DataFrame) -> None:
    """Draw the numbers of judgements by label, stacked, a bar for each layer pair."""
    at = range(len(scores))
    stacks = {label: numbers(scores, f"n_{label.lower()}", 0.0) for label in LABEL_COLOURS}
    stacks["without a label"] = _counts_of(scores, UNSCORED)
    bottom = 0 * stacks["SAME"]
    for (label, counts), hatch in zip(stacks.items(), HATCHES, strict=False):
        colour = LABEL_COLOURS.get(label, UNSCORED_COLOUR)
        look: Any = {"color": colour, "label": label, "hatch": hatch, "edgecolor": "white"}
        axis.bar(at, counts, 0.8, bottom, linewidth=0, zorder=2, **look)
        bottom = bottom + counts
    step = 1 + len(scores) // 10
    labels = [f"{source}→{target}" for source, target in layer_pairs(scores)]
    axis.set_xticks(list(at)[::step], labels[::step])
    axis.set_xlabel("layers")


def _counts_of(scores: DataFrame, labels: Iterable[str]) -> np.ndarray:
    """Return the number of judgements with one of the labels, by row."""
    return scores[[f"n_{label.lower()}" for label in labels]].sum(axis=1).to_numpy(dtype=int)


def judge_bounds(axis: Axes, tables: Tables) -> None:
    """Draw the floor and the ceiling of the run, and scale the axis to the labels."""
    overall = where(table(tables, "judge_scores"), source_layer=None, **OF_DEFAULT)
    for role, dash in (("random", ":"), ("ceiling", "--"), ("paraphrase", "-.")):
        for score in with_metric(where(overall, role=role), "judge_score")["judge_score"]:
            colour, label = BASELINES["identity"], CONTROL_LABELS[role]
            axis.axhline(score, color=colour, linestyle=dash, linewidth=1, label=label)
    axis.set_ylim(0.95, 3.05)
    axis.set_yticks([1, 2, 3], ["1 DIFFERENT", "2 MAYBE", "3 SAME"])


def judge_controls(tables: Tables) -> Figure | None:
    """Scores of arms next to floor and ceiling; agreement on pairs that were judged again."""
    overall = where(table(tables, "judge_scores"), source_layer=None, **OF_DEFAULT)
    scored = with_metric(overall, "judge_score")
    if scored.empty:
        return None
    scored = scored.sort_values("role", kind="stable", key=lambda role: role.map(ROLES.index))
    again = with_metric(table(tables, "judge_agreement"), "agreement")
    n_panels = 1 if again.empty else 2
    figure, axes = panels(n_panels, 1.4 + 0.32 * max(len(scored), 2 * len(again)))
    figure.set_figwidth(6 if again.empty else 9.5)
    scores = axes[0]
    colours = [
        BASELINES["identity"] if arm == NO_ARM else arm_style(arm, overall)["color"]
        for arm in scored["arm"]
    ]
    n_scored = _counts_of(scored, SCORES)
    labels = [
        f"{CONTROL_LABELS.get(role, arm)} ({n})"
        for role, arm, n in zip(scored["role"], scored["arm"], n_scored, strict=True)
    ]
    dots(scores, scored, labels, "judge_score", colours)
    scores.set_xlim(0.95, 3.05)
    scores.set_xticks([1, 2, 3], ["1\nDIFFERENT", "2\nMAYBE", "3\nSAME"])
    label = tables.column("judge_score").label  # names a judge that is no LLM
    scores.set_title(f"mean {label}\n(number of judgements with a label)")
    if not again.empty:
        _agreements(axes[1], again)
        legend(figure, axes[1])
    return figure


def _agreements(axis: Axes, again: DataFrame) -> None:
    """Draw how often pairs got the same label when judged again, and kappa."""
    rows = rows_of(again)
    for metric, label, marker, colour, shift in (
        ("agreement", "same label", MARKERS[0], COLOURS[0], -0.12),
        ("kappa", "Cohen's kappa", MARKERS[1], COLOURS[1], 0.12),
    ):
        for at, row in enumerate(rows):
            if row[metric] is None:
                continue
            ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
            if None not in ends:
                axis.plot(ends, [at + shift] * 2, color=colour, linewidth=2.5, alpha=0.4)  # type: ignore[arg-type]
            axis.plot([row[metric]], [at + shift], color=colour, marker=marker, linestyle="",  # type: ignore[arg-type]
                      label=None if at else label)  # fmt: skip
    names = [f"{AGAIN_LABELS[str(row['compared'])]} ({row['n_pairs']})" for row in rows]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(min(-0.05, *numbers(again, "kappa_low", 0.0)), 1.05)
    axis.set_title("the same pairs judged once more")
    axis.grid(axis="x", color="#EEEEEE", zorder=0)


def mse_by_label(tables: Tables) -> Figure | None:
    """Figure 6: the decoder's squared error of judged pairs by label; dots are pairs."""
    judged = with_metric(
        where(table(tables, "judgements"), role="pair", **OF_DEFAULT), "judge_score"
    )
    pairs = layer_pairs(judged)
    if judged.empty or len(pairs) > 8:
        return None
    figure, axes = panels(len(pairs), 3.4)
    arms = arms_of(judged)
    for axis, (source, target) in zip(axes, pairs, strict=True):
        of_pair = where(judged, source_layer=source, target_layer=target)
        for number, arm in enumerate(arms):
            errors = _errors_by_label(of_pair, arm)
            shift = (number - (len(arms) - 1) / 2) * 0.7 / len(arms)
            style = {**arm_style(arm, judged), "hatch": HATCHES[number % len(HATCHES)]}
            _boxes(axis, errors, shift, 0.55 / len(arms), style)
        counts = map(len, _errors_by_label(of_pair, arms[0]))
        ticks = [f"{label}\n{n} {arms[0]}" for label, n in zip(SCORES, counts, strict=True)]
        axis.set_xticks(range(3), ticks, fontsize=7.5)
        axis.set_title(f"layers {source}→{target}")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    axes[0].set_ylabel("squared error of the\nfolded decoder vectors")
    axes[0].set_xlabel(tables.column("judge_score").label)
    legend(figure, axes[0])
    return figure


def _boxes(
    axis: Axes, errors: list[np.ndarray], shift: float, width: float, style: dict[str, Any]
) -> None:
    """Draw one arm's box plot of errors by label."""
    boxes = axis.boxplot(
        errors, positions=[at + shift for at in range(len(errors))], widths=width,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": style["color"]},
        medianprops={"color": "black"}, manage_ticks=False, patch_artist=True,
    )  # fmt: skip
    for box in boxes["boxes"]:
        box.set(facecolor=style["color"], alpha=0.5, hatch=style["hatch"])
    axis.bar([0], [np.nan], color=style["color"], alpha=0.5, hatch=style["hatch"],
             edgecolor="black", label=style["label"])  # fmt: skip


def _errors_by_label(judged: DataFrame, arm: str) -> list[np.ndarray]:
    """Return the errors of an arm's feature pairs with each label; several paths count once."""
    features = ["source_feature", "target_feature"]
    return [
        numbers(where(judged, arm=arm, label=label).drop_duplicates(features), "mse_W_dec", 0.0)
        for label in SCORES
    ]

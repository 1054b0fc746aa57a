"""Figures of what a judge said, and of what explanations say about features."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from saematch.core.pairs import NO_ARM, OF_DEFAULT
from saematch.core.tables import Row, Tables
from saematch.judge.verdicts import SCORES, UNSCORED
from saematch.report.style import (
    BASELINES,
    COLOURS,
    arm_style,
    arms_of,
    by_pair,
    dots,
    legend,
    main_line,
    panels,
    unique,
    where,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_COLOURS = {"SAME": "#0072B2", "MAYBE": "#56B4E9", "DIFFERENT": "#D55E00"}
UNSCORED_COLOUR = "#CCCCCC"
CONTROL_LABELS = {
    "random": "random pairs",
    "identity": "equal index",
    "ceiling": "same feature twice",
    "paraphrase": "paraphrase",
}
AGAIN_LABELS = {"swapped": "order swapped", "repeated": "asked again", "second": "second judge"}
N_EXPLAINED = 4
"""Paths, and pairs of each end, in a figure of explanations."""


def judge_layers(tables: Tables) -> Figure | None:
    """Figures 4 and 7 (left): labels by layer pair for each arm, and the mean score."""
    rows = [r for r in where(tables.rows("judge_scores"), role="pair", **OF_DEFAULT) if _placed(r)]
    pairs = unique(rows, "source_layer", "target_layer")
    if not pairs or len(pairs) > len({start for start, _ in pairs}):
        return None
    arms = arms_of(rows)
    figure, axes = panels(len(arms) + 1, 3.6)
    for axis, arm in zip(axes, arms, strict=False):
        _bars(axis, where(rows, arm=arm))
        axis.set_title(arm)
    axes[0].set_ylabel("judgements")
    mean = axes[-1]
    matched = [  # in the order of the run
        row
        for row in where(tables.rows("matches"), **OF_DEFAULT)
        if (row["source_layer"], row["target_layer"]) in pairs
    ]
    for arm in arms:
        by_pair(mean, where(rows, arm=arm), "judge_score", matched, **arm_style(arm, rows))
    judge_bounds(mean, tables)
    mean.set_title("mean judge score (bands: over paths)")
    legend(figure, axes[0], mean)
    return figure


def _placed(row: Row) -> bool:
    return row["source_layer"] is not None


def _bars(axis: Axes, rows: list[Row]) -> None:
    at = range(len(rows))
    bottom = [0] * len(rows)
    missing = [sum(int(row[f"n_{label.lower()}"] or 0) for label in UNSCORED) for row in rows]
    stacks = {label: [int(r[f"n_{label.lower()}"] or 0) for r in rows] for label in LABEL_COLOURS}
    for label, counts in {**stacks, "without a label": missing}.items():
        colour = LABEL_COLOURS.get(label, UNSCORED_COLOUR)
        axis.bar(at, counts, 0.8, bottom, color=colour, label=label, zorder=2)
        bottom = [low + n for low, n in zip(bottom, counts, strict=True)]
    step = 1 + len(rows) // 10
    labels = [f"{row['source_layer']}→{row['target_layer']}" for row in rows]
    axis.set_xticks(list(at)[::step], labels[::step])
    axis.set_xlabel("layers")


def judge_bounds(axis: Axes, tables: Tables) -> None:
    """Draw the floor and the ceiling of the run, and scale the axis to the labels."""
    for role, dash in (("random", ":"), ("ceiling", "--"), ("paraphrase", "-.")):
        for row in where(tables.rows("judge_scores"), role=role, source_layer=None, **OF_DEFAULT):
            if row["judge_score"] is not None:
                colour = BASELINES["identity"]
                axis.axhline(row["judge_score"], color=colour, linestyle=dash, linewidth=1,  # type: ignore[arg-type]
                             label=CONTROL_LABELS[role])  # fmt: skip
    axis.set_ylim(0.95, 3.05)
    axis.set_yticks([1, 2, 3], ["1 DIFFERENT", "2 MAYBE", "3 SAME"])


def judge_controls(tables: Tables) -> Figure | None:
    """What judge scores are worth: floor, arms and ceiling; the same pairs judged once more."""
    overall = where(tables.rows("judge_scores"), source_layer=None, **OF_DEFAULT)
    scored = [row for row in overall if row["judge_score"] is not None]
    if not scored:
        return None
    order = {"random": 0, "identity": 1, "pair": 2, "ceiling": 3, "paraphrase": 4}
    scored.sort(key=lambda row: order[str(row["role"])])
    again = [row for row in tables.rows("judge_agreement") if row["agreement"] is not None]
    figure, axes = panels(1 + bool(again), 1.4 + 0.32 * max(len(scored), 2 * len(again)))
    figure.set_figwidth(9.5 if again else 6)
    scores = axes[0]
    colours = [
        BASELINES["identity"] if row["arm"] == NO_ARM
        else arm_style(str(row["arm"]), overall)["color"] for row in scored
    ]  # fmt: skip
    labels = [CONTROL_LABELS.get(str(row["role"]), str(row["arm"])) for row in scored]
    counted = [f"{name} ({_n_scored(row)})" for name, row in zip(labels, scored, strict=True)]
    dots(scores, scored, counted, "judge_score", colours)
    scores.set_xlim(0.95, 3.05)
    scores.set_xticks([1, 2, 3], ["1\nDIFFERENT", "2\nMAYBE", "3\nSAME"])
    scores.set_title("mean score (number of judgements with a label)")
    if again:
        _agreements(axes[1], again)
        legend(figure, axes[1])
    return figure


def _agreements(agreement: Axes, again: list[Row]) -> None:
    """Draw how often the same pairs got the same label once more, and kappa."""
    names = [f"{AGAIN_LABELS[str(row['compared'])]} ({row['n_pairs']})" for row in again]
    for metric, colour, shift in (("agreement", COLOURS[0], -0.12), ("kappa", COLOURS[1], 0.12)):
        for at, row in enumerate(again):
            if row[metric] is None:
                continue
            ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
            if None not in ends:
                agreement.plot(ends, [at + shift] * 2, color=colour, linewidth=2.5, alpha=0.4)  # type: ignore[arg-type]
            label = {"agreement": "same label", "kappa": "Cohen's kappa"}[metric]
            agreement.plot([row[metric]], [at + shift], color=colour, marker="o", linestyle="",  # type: ignore[arg-type]
                           label=None if at else label)  # fmt: skip
    agreement.set_yticks(range(len(names)), names)
    agreement.set_ylim(len(names) - 0.5, -0.5)
    agreement.set_xlim(min([-0.05, *(float(r["kappa_low"] or 0) for r in again)]), 1.05)
    agreement.set_title("the same pairs judged once more")
    agreement.grid(axis="x", color="#EEEEEE", zorder=0)


def _n_scored(row: Row) -> int:
    return sum(int(row[f"n_{label.lower()}"] or 0) for label in SCORES)


def mse_by_label(tables: Tables) -> Figure | None:
    """Figure 6: the decoder's squared error of judged pairs by label; dots are pairs."""
    rows = [
        row
        for row in where(tables.rows("judgements"), role="pair", **OF_DEFAULT)
        if row["judge_score"] is not None
    ]
    pairs = unique(rows, "source_layer", "target_layer")
    if not rows or len(pairs) > 8:
        return None
    figure, axes = panels(len(pairs), 3.4)
    arms = arms_of(rows)
    for axis, (earlier, later) in zip(axes, pairs, strict=True):
        of_pair = where(rows, source_layer=earlier, target_layer=later)
        for number, arm in enumerate(arms):
            style = arm_style(arm, rows)
            found = [
                [float(r["mse_W_dec"] or 0) for r in _pairs_of(of_pair, arm, label)]
                for label in SCORES
            ]
            at = [n + (number - (len(arms) - 1) / 2) * 0.7 / len(arms) for n in range(3)]
            boxes = axis.boxplot(
                found, positions=at, widths=0.55 / len(arms), patch_artist=True,
                flierprops={"marker": ".", "markersize": 3, "markeredgecolor": style["color"]},
                medianprops={"color": "black"}, manage_ticks=False,
            )  # fmt: skip
            for box in boxes["boxes"]:
                box.set(facecolor=style["color"], alpha=0.5)
            axis.plot([], [], color=style["color"], linewidth=6, alpha=0.5, label=arm)  # type: ignore[arg-type]
        counts = [len(_pairs_of(of_pair, arms[0], label)) for label in SCORES]
        ticks = [f"{label}\n{n} {arms[0]}" for label, n in zip(SCORES, counts, strict=True)]
        axis.set_xticks(range(3), ticks, fontsize=7.5)
        axis.set_title(f"layers {earlier}→{later}")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    axes[0].set_ylabel("squared error of the folded decoder vectors")
    legend(figure, axes[0])
    return figure


def _pairs_of(rows: list[Row], arm: str, label: str) -> list[Row]:
    """Return one row for each pair of features, whatever number of paths goes through it."""
    of_label = where(rows, arm=arm, label=label)
    return list({(r["source_feature"], r["target_feature"]): r for r in of_label}.values())


def explained_pairs(tables: Tables) -> Figure | None:
    """Figure 5's examples: explanations of the matched pairs of least and of greatest error."""
    rows = [r for r in where(tables.rows("features"), **OF_DEFAULT) if "source_explanation" in r]
    if not rows:
        return None
    rows = where(rows, arm=arms_of(rows)[0])
    first = {name: rows[0][name] for name in ("source_layer", "target_layer")}
    rows = where(rows, **first)
    shown = [*rows[:N_EXPLAINED], *rows[-N_EXPLAINED:]] if len(rows) > 2 * N_EXPLAINED else rows
    heads = ["error", f"layer {first['source_layer']}", f"layer {first['target_layer']}"]
    cells = [
        [_error(row), _said(row, "source", 52), _said(row, "target", 52)]
        for row in shown
    ]  # fmt: skip
    return _text_table(heads, cells, [0.1, 0.45, 0.45], [row.get("label") for row in shown])


def _error(row: Row) -> str:
    label = row.get("label")
    return f"{float(row['mse_W_dec'] or 0):.3g}" + (f"\n{label}" if label else "")


def explained_paths(tables: Tables) -> Figure | None:
    """Figures 18 and 19: features followed through the layers, with what is said about each."""
    rows = [r for r in where(tables.rows("paths"), **OF_DEFAULT) if "source_explanation" in r]
    if not rows:
        return None
    rows = main_line(where(rows, arm=arms_of(rows)[0]))
    paths = [path for (path,) in unique(rows, "path")][:N_EXPLAINED]
    layers = sorted({layer for row in rows for layer in (row["source_layer"], row["target_layer"])})
    cells, colours = [], []
    for layer in layers:
        line = [f"layer\n{layer}"]
        for path in paths:
            ends = [("source", r) for r in where(rows, path=path, source_layer=layer)]
            ends += [("target", r) for r in where(rows, path=path, target_layer=layer)]
            came = [row.get("label") for row in where(rows, path=path, target_layer=layer)]
            judged = f"\n{came[0]}" if came and came[0] else ""
            line.append(_said(ends[0][1], ends[0][0], 32) + judged if ends else "")
        cells.append(line)
        colours.append(None)
    heads = ["", *(f"path {path}" for path in paths)]
    width = 0.94 / len(paths)
    return _text_table(heads, cells, [0.06, *[width] * len(paths)], colours)


def _said(row: Row, end: str, width: int) -> str:
    text = str(row[f"{end}_explanation"] or "no explanation")
    lines = textwrap.wrap(f"{row[f'{end}_feature']}: {text}", width)
    return "\n".join(lines[:4]) + (" …" if len(lines) > 4 else "")


def _text_table(
    heads: list[str], cells: list[list[str]], widths: list[float], labels: list
) -> Figure:
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

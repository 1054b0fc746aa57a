"""Rules on a judge's findings."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import pandas as pd

from saematch.core.pairs import OF_DEFAULT
from saematch.core.tables import Tables
from saematch.report.frames import numbers, unique, values_of, where, with_metric
from saematch.report.rules import (
    Finding,
    MissingNumbersError,
    distance,
    paired,
    rises,
    rows,
    share,
    values,
)


def same_rises(tables: Tables) -> Finding:
    """Mean share of SAME in the later half of the pairs above that in the earlier half."""
    return rises(values(_by_pair(tables, "folded"), "same_share"))


def judged_folded_above(tables: Tables) -> Finding:
    """Higher in two thirds of pairs."""
    pairs = paired(_by_pair(tables, "folded"), _by_pair(tables, "unfolded"), "judge_score")
    return share([folded > unfolded for folded, unfolded in pairs], "pairs")


def judged_above_random(tables: Tables) -> Finding:
    """Lower end of the match's interval above the upper end of that of random pairs."""
    overall = rows(tables["judge_scores"], source_layer=None, **OF_DEFAULT)
    (low,) = values(rows(overall, role="pair", arm="folded"), "judge_score_low")
    (high,) = values(rows(overall, role="random", arm="none"), "judge_score_high")
    return Finding(low > high, f"match at least {low:.2f}, random pairs at most {high:.2f}")


def order_matters_little(tables: Tables) -> Finding:
    """Mean change of score within 0.1, and kappa at least 0.6."""
    swapped = rows(tables["judge_agreement"], compared="swapped")
    (change,), (kappa,) = (values(swapped, name) for name in ("score_difference", "kappa"))
    seen = f"mean change {change:+.2f}, kappa {kappa:.2f}"
    return Finding(abs(change) <= 0.1 and kappa >= 0.6, seen)


def same_has_less_error(tables: Tables) -> Finding:
    """Median error of SAME below that of DIFFERENT in two thirds of pairs."""
    labelled = rows(tables["mse_by_label"], arm="folded")
    labelled = labelled[labelled["n_pairs"] > 0]
    cases = []
    for source, target in unique(labelled, "source_layer", "target_layer"):
        of_pair = where(labelled, source_layer=source, target_layer=target)
        medians = dict(
            zip(of_pair["label"], numbers(of_pair, "mse_median", 0.0).tolist(), strict=True)
        )
        if {"SAME", "DIFFERENT"} <= medians.keys():
            cases.append(medians["SAME"] < medians["DIFFERENT"])
    return share(cases, "pairs with both labels")


def judged_fades(tables: Tables) -> Finding:
    """Lower at the farthest of the next five layers than at the first, in two thirds of starts."""
    cases = []
    for scores in _by_distance(tables, "folded"):
        near = {layers: score for layers, score in scores.items() if layers <= 5}
        if len(near) > 1:
            cases.append(near[max(near)] < near[min(near)])
    return share(cases, "starts")


def judged_composition_close(tables: Tables) -> Finding:
    """Mean score within 0.2 of the match at once, at distance 2."""
    scores = [
        [of_source[2] for of_source in _by_distance(tables, arm) if 2 in of_source]
        for arm in ("folded", "composed")
    ]
    if not all(scores):
        raise MissingNumbersError("no pair at distance 2")
    exact, composed = map(fmean, scores)
    return Finding(exact - composed <= 0.2, f"{composed:.2f} composed, {exact:.2f} at once")


def judged_composition_below(tables: Tables) -> Finding:
    """Lower mean score at the farthest layer of two thirds of starts that reach three layers."""
    cases = [
        composed[max(composed)] < exact[max(exact)]
        for exact, composed in zip(
            _by_distance(tables, "folded"), _by_distance(tables, "composed"), strict=True
        )
        if max(exact) >= 3
    ]
    return share(cases, "starts")


def _by_pair(tables: Tables, arm: str) -> pd.DataFrame:
    """Return an arm's scores at each pair, without those over all pairs."""
    scores = rows(tables["judge_scores"], role="pair", arm=arm, **OF_DEFAULT)
    return with_metric(scores, "source_layer")


def _by_distance(tables: Tables, arm: str) -> Iterator[dict[int, float]]:
    """Yield the scores of each source layer, by distance."""
    scores = _by_pair(tables, arm)
    for source in values_of(scores, "source_layer"):
        of_source = where(scores, source_layer=source)
        yield dict(zip(distance(of_source), values(of_source, "judge_score"), strict=True))

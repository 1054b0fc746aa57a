"""Rules that decide on what a judge said, as ``rules`` do on everything else."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from saematch.core.pairs import OF_DEFAULT
from saematch.core.tables import Row, Tables
from saematch.report.rules import (
    MissingNumbersError,
    Verdict,
    _column,
    _distance,
    _rises,
    _rows,
    _share,
)
from saematch.report.style import unique, where


def same_rises(tables: Tables) -> Verdict:
    """Mean share of SAME in the later half of the pairs above that in the earlier half."""
    return _rises(_column(_placed(tables, "folded"), "same_share"))


def judged_folded_above(tables: Tables) -> Verdict:
    """Higher in two thirds of pairs."""
    folded, unfolded = (
        _column(_placed(tables, arm), "judge_score") for arm in ("folded", "unfolded")
    )
    return _share([a > b for a, b in zip(folded, unfolded, strict=True)], "pairs")


def judged_above_random(tables: Tables) -> Verdict:
    """Lower end of the match's interval above the upper end of that of random pairs."""
    (match,), (floor,) = (
        _rows(tables.rows("judge_scores"), role=role, arm=arm, source_layer=None, **OF_DEFAULT)
        for role, arm in (("pair", "folded"), ("random", "none"))
    )
    low, high = _column([match], "judge_score_low")[0], _column([floor], "judge_score_high")[0]
    return Verdict(low > high, f"match at least {low:.2f}, random pairs at most {high:.2f}")


def order_matters_little(tables: Tables) -> Verdict:
    """Mean change of score within 0.1, and kappa at least 0.6."""
    (row,) = _rows(tables.rows("judge_agreement"), compared="swapped")
    (change,), (kappa,) = (_column([row], name) for name in ("score_difference", "kappa"))
    seen = f"mean change {change:+.2f}, kappa {kappa:.2f}"
    return Verdict(abs(change) <= 0.1 and kappa >= 0.6, seen)


def same_has_less_error(tables: Tables) -> Verdict:
    """Median error of SAME below that of DIFFERENT in two thirds of pairs."""
    rows = [row for row in _rows(tables.rows("mse_by_label"), arm="folded") if row["n_pairs"]]
    cases = []
    for earlier, later in unique(rows, "source_layer", "target_layer"):
        of_pair = where(rows, source_layer=earlier, target_layer=later)
        medians = {row["label"]: float(row["mse_median"] or 0) for row in of_pair}
        if {"SAME", "DIFFERENT"} <= medians.keys():
            cases.append(medians["SAME"] < medians["DIFFERENT"])
    return _share(cases, "pairs with both labels")


def judged_fades(tables: Tables) -> Verdict:
    """Lower at the farthest of the next five layers than at the first, in two thirds of starts."""
    cases = []
    for score in _by_start(tables, "folded"):
        near = {distance: value for distance, value in score.items() if distance <= 5}
        if len(near) > 1:
            cases.append(near[max(near)] < near[min(near)])
    return _share(cases, "starts")


def judged_composition_close(tables: Tables) -> Verdict:
    """Mean score within 0.2 of the match at once, at distance 2."""
    found = [
        [score[2] for score in _by_start(tables, arm) if 2 in score]
        for arm in ("folded", "composed")
    ]
    if not all(found):
        raise MissingNumbersError("no pair at distance 2")
    exact, composed = map(fmean, found)
    return Verdict(exact - composed <= 0.2, f"{composed:.2f} composed, {exact:.2f} at once")


def judged_composition_below(tables: Tables) -> Verdict:
    """Lower mean score at the farthest layer of two thirds of starts that reach three layers."""
    cases = [
        composed[max(composed)] < exact[max(exact)]
        for exact, composed in zip(
            _by_start(tables, "folded"), _by_start(tables, "composed"), strict=True
        )
        if max(exact) >= 3
    ]
    return _share(cases, "starts")


def _placed(tables: Tables, arm: str) -> list[Row]:
    rows = _rows(tables.rows("judge_scores"), role="pair", arm=arm, **OF_DEFAULT)
    return [row for row in rows if row["source_layer"] is not None]


def _by_start(tables: Tables, arm: str) -> Iterator[dict[float, float]]:
    """Yield the score at each distance, of each first layer."""
    rows = _placed(tables, arm)
    for (start,) in unique(rows, "source_layer"):
        of_start = where(rows, source_layer=start)
        distances = [_distance(row) for row in of_start]
        yield dict(zip(distances, _column(of_start, "judge_score"), strict=True))

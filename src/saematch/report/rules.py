"""Rules that decide, on a run's numbers, whether they have the shape of the paper's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import correlation, fmean
from typing import Any

from saematch.core.pairs import DEFAULT, NO_ARM, OF_DEFAULT
from saematch.core.tables import Row, Tables
from saematch.report.style import unique, where
from saematch.sae.sources.selection import SIMILAR

MOST = 2 / 3
"""Share of cases in which a shape must show to count."""


@dataclass(frozen=True)
class Verdict:
    """What a rule found."""

    agrees: bool | None
    """None where the run lacks the numbers."""
    seen: str
    """The numbers that decided."""


def _share(cases: Iterable[bool], of: str, needed: float = MOST) -> Verdict:
    found = list(cases)
    if not found:
        raise MissingNumbersError("no cases")
    seen = f"{sum(found)} of {len(found)} {of}"
    return Verdict(sum(found) >= needed * len(found), seen)


def _both(*verdicts: Verdict) -> Verdict:
    agrees = all(verdict.agrees for verdict in verdicts)
    return Verdict(agrees, "; ".join(verdict.seen for verdict in verdicts))


class MissingNumbersError(ValueError):
    """A run lacks what a rule needs."""


def _rows(table: Sequence[Row], **values: object) -> list[Row]:
    found = where(table, **values)
    if not found:
        raise MissingNumbersError(f"no rows of {', '.join(f'{k} {v}' for k, v in values.items())}")
    return found


def _column(rows: Sequence[Row], name: str) -> list[float]:
    values = [row.get(name) for row in rows]
    if not values or None in values:
        raise MissingNumbersError(f"no {name}")
    return [float(value) for value in values if value is not None]


def _of_arm(tables: Tables, arm: str, metric: str, **values: object) -> list[float]:
    return _column(_rows(tables.rows("matches"), **{"arm": arm, **OF_DEFAULT, **values}), metric)


def _skipped(tables: Tables, arm: str, strategy: str, metric: str, **values: object) -> list[float]:
    fixed: dict[str, Any] = {"quantile": None, **OF_DEFAULT, **values}
    return _column(_rows(tables.rows("strategies"), arm=arm, strategy=strategy, **fixed), metric)


def _rise(values: Sequence[float], of: str) -> Verdict:
    steps = [after > before for before, after in pairwise(values)]
    return _share(steps, f"steps up ({of})", 0.75)


def norms_grow(tables: Tables) -> Verdict:
    """Each rises in three quarters of the steps."""
    layers = _rows(tables.rows("layers"), suite=DEFAULT)
    norms, thresholds = (_column(layers, name) for name in ("mean_norm", "threshold_mean"))
    return _both(_rise(norms, "norm"), _rise(thresholds, "threshold"))


def norm_changes(tables: Tables) -> Verdict:
    """Correlation over pairs of at least 0.5."""
    norms = _column(_rows(tables.rows("layers"), suite=DEFAULT), "mean_norm")
    states = [after - before for before, after in pairwise(norms)]
    vectors = _of_arm(tables, "folded", "decoder_norm_change")
    if len(states) < 3:
        raise MissingNumbersError("fewer than three pairs")
    found = correlation(states, vectors)
    return Verdict(found >= 0.5, f"correlation {found:.2f} over {len(states)} pairs")


def identity_far_above(tables: Tables) -> Verdict:
    """1.2 times, in 9 of 10 (pair, part, matching)."""
    cases = []
    for part in ("W_enc", "b_enc", "W_dec"):
        identity = _of_arm(tables, "identity", f"mse_{part}")
        for arm in ("folded", "unfolded"):
            found = _of_arm(tables, arm, f"mse_{part}")
            cases += [i > 1.2 * m for i, m in zip(identity, found, strict=True)]
    return _share(cases, "(pair, part, matching)", 0.9)


def unfolded_above_in_decoder(tables: Tables) -> Verdict:
    """Higher in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "mse_W_dec")
    return _share([unfolded > folded for folded, unfolded in pairs], "pairs")


def unfolded_near_in_encoder(tables: Tables) -> Verdict:
    """At most 1.1 times in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "mse_W_enc")
    return _share([unfolded <= 1.1 * folded for folded, unfolded in pairs], "pairs")


def _folded_and_unfolded(tables: Tables, metric: str) -> Iterable[tuple[float, float]]:
    return zip(*(_of_arm(tables, arm, metric) for arm in ("folded", "unfolded")), strict=True)


def long_tail(tables: Tables) -> Verdict:
    """Mean above the median, and identity's median above twice the median."""
    median = {}
    for arm in ("folded", "identity"):
        bins = _rows(tables.rows("feature_mse_histogram"), arm=arm)
        middle = [(float(b["mse_low"] or 0) + float(b["mse_high"] or 0)) / 2 for b in bins]
        each = [m for m, b in zip(middle, bins, strict=True) for _ in range(int(b["n_pairs"] or 0))]
        median[arm] = each[len(each) // 2]
        if arm == "folded":
            mean = fmean(each)
    seen = f"median {median['folded']:.3g}, mean {mean:.3g}, identity's median "
    agrees = mean > median["folded"] and median["identity"] > 2 * median["folded"]
    return Verdict(agrees, f"{seen}{median['identity']:.3g}")


def score_rises(tables: Tables) -> Verdict:
    """Mean of the later half of the pairs above that of the earlier half."""
    return _rises(_of_arm(tables, "folded", "matching_score"))


def _rises(values: Sequence[float]) -> Verdict:
    half = len(values) // 2
    if not half:
        raise MissingNumbersError("one pair")
    early, late = fmean(values[:half]), fmean(values[-half:])
    return Verdict(late > early, f"{early:.2f} in the first {half} pairs, {late:.2f} in the last")


def recall_almost_whole(tables: Tables) -> Verdict:
    """Recall of at least 0.95 in two thirds of pairs."""
    recall = _of_arm(tables, "folded", "recall")
    share = _share([value >= 0.95 for value in recall], "pairs")
    return Verdict(share.agrees, f"{share.seen}; mean recall {fmean(recall):.3f}")


def found_alike(tables: Tables) -> Verdict:
    """Matching scores of folded and unfolded at most 0.03 apart in two thirds of pairs."""
    pairs = list(_folded_and_unfolded(tables, "matching_score"))
    share = _share([abs(folded - unfolded) <= 0.03 for folded, unfolded in pairs], "pairs")
    folded, unfolded = (fmean(values) for values in zip(*pairs, strict=True))
    return Verdict(share.agrees, f"{share.seen}; mean {folded:.3f}, unfolded {unfolded:.3f}")


def score_folded_above(tables: Tables) -> Verdict:
    """Higher in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "matching_score")
    return _share([folded > unfolded for folded, unfolded in pairs], "pairs")


def score_above_chance(tables: Tables) -> Verdict:
    """95 % intervals apart at every pair."""
    low = _of_arm(tables, "folded", "matching_score_low")
    cases = [
        mine > theirs
        for arm in ("identity", "random")
        for mine, theirs in zip(low, _of_arm(tables, arm, "matching_score_high"), strict=True)
    ]
    return _share(cases, "(pair, baseline), intervals apart", 1.0)


def encoder_worse(tables: Tables) -> Verdict:
    """Its interval below that of both parts."""
    (high,) = _of_arm(tables, "encoder", "matching_score_high")
    (low,) = _of_arm(tables, "both", "matching_score_low")
    return Verdict(high < low, f"encoder at most {high:.2f}, both at least {low:.2f}")


def decoder_equal(tables: Tables) -> Verdict:
    """Matching scores at most 0.05 apart."""
    (decoder,) = _of_arm(tables, "decoder", "matching_score")
    (both,) = _of_arm(tables, "both", "matching_score")
    return Verdict(abs(decoder - both) <= 0.05, f"decoder {decoder:.3f}, both {both:.3f}")


def fades(tables: Tables) -> Verdict:
    """The score falls in two thirds of steps (the paper: judge's score)."""
    cases = []
    for (start,) in unique(tables.rows("matches"), "source_layer"):
        score = _of_arm(tables, "folded", "matching_score", source_layer=start)
        cases += [after < before for before, after in pairwise(score)]
    return _share(cases, "steps down")


def _distance(row: Row) -> float:
    return float(row["target_layer"] or 0) - float(row["source_layer"] or 0)


def composition_close(tables: Tables) -> Verdict:
    """Half of the pairs shared at distance 2."""
    composed = _rows(tables.rows("matches"), arm="composed")
    agreement = fmean(_column([r for r in composed if _distance(r) == 2], "agreement"))
    return Verdict(agreement >= 0.5, f"{agreement:.2f} of pairs shared at distance 2")


def composition_worse(tables: Tables) -> Verdict:
    """Lower matching score at the farthest."""
    longest = max(_rows(tables.rows("matches"), arm="composed"), key=_distance)
    pair = {name: longest[name] for name in ("source_layer", "target_layer")}
    (exact,) = _of_arm(tables, "folded", "matching_score", **pair)
    score = float(longest["matching_score"] or 0)
    return Verdict(score < exact, f"score {score:.2f} composed, {exact:.2f} at once")


def explained_folded_above(tables: Tables) -> Verdict:
    """Higher in two thirds of (pair, data set), both decoded by thresholds."""
    return _explained_above(tables, "permute")


def explained_own_scale_above(tables: Tables) -> Verdict:
    """Higher in two thirds of (pair, data set), unfolded decoded by norms."""
    return _explained_above(tables, "permute_raw")


def _explained_above(tables: Tables, unfolded: str) -> Verdict:
    pairs = zip(
        _skipped(tables, "folded", "permute", "explained_variance"),
        _skipped(tables, "unfolded", unfolded, "explained_variance"),
        strict=True,
    )
    return _share([folded > other for folded, other in pairs], "(pair, data set)")


def _depth(tables: Tables) -> tuple[list[int], list[int]]:
    """Return the earlier layers of the first 10/26 of the pairs, and of the others."""
    starts = [start for (start,) in unique(tables.rows("strategies"), "source_layer")]
    cut = max(1, round(10 / 26 * len(starts)))
    if len(starts) < 2:
        raise MissingNumbersError("one pair")
    return starts[:cut], starts[cut:]


def explained_late(tables: Tables) -> Verdict:
    """At least 0.65 in two thirds of (pair, data set) after the first 10/26."""
    late = _depth(tables)[1]
    values = [
        value
        for start in late
        for value in _skipped(tables, "folded", "permute", "explained_variance", source_layer=start)
    ]
    return _share([v >= 0.65 for v in values], f"(pair, data set) from layer {late[0]} on")


def loss_falls(tables: Tables) -> Verdict:
    """Mean change in loss higher in the first 10/26 of the pairs."""
    early, late = (
        fmean(
            value
            for start in starts
            for value in _skipped(tables, "folded", "permute", "delta_loss", source_layer=start)
        )
        for starts in _depth(tables)
    )
    return Verdict(early > late, f"{early:.2f} nats in early pairs, {late:.2f} in later ones")


def explained_above_chance(tables: Tables) -> Verdict:
    """95 % intervals apart at every (pair, data set)."""
    pairs = zip(
        _skipped(tables, "folded", "permute", "explained_variance_low"),
        _skipped(tables, "random", "permute", "explained_variance_high"),
        strict=True,
    )
    return _share([low > high for low, high in pairs], "(pair, data set), intervals apart", 1.0)


def explained_above_copying(tables: Tables) -> Verdict:
    """Above the copied hidden state in two thirds of (pair, data set)."""
    pairs = zip(
        _skipped(tables, "folded", "permute", "explained_variance"),
        _skipped(tables, NO_ARM, "drop", "explained_variance"),
        strict=True,
    )
    return _share([match > copy for match, copy in pairs], "(pair, data set)")


def explained_below_zero(tables: Tables) -> Verdict:
    """Below zero at some (pair, data set), the interval too."""
    high = _skipped(tables, "folded", "permute", "explained_variance_high")
    return _share([value < 0 for value in high], "(pair, data set)", 1 / len(high))


def gains_where_thresholds_grow(tables: Tables) -> Verdict:
    """Correlation over pairs of gain and growth of the mean threshold at least 0.5."""
    thresholds = _column(_rows(tables.rows("layers"), suite=DEFAULT), "threshold_mean")
    growth = [later / earlier for earlier, later in pairwise(thresholds)]
    rows = _rows(tables.rows("contrasts"), arm="folded", against_arm="folded", quantile=None)
    gains = [
        fmean(_column(_rows(rows, source_layer=start), "explained_variance_difference"))
        for (start,) in unique(rows, "source_layer")
    ]
    if len(gains) < 3:
        raise MissingNumbersError("fewer than three pairs")
    found = correlation(growth, gains)
    return Verdict(found >= 0.5, f"correlation {found:.2f} over {len(gains)} pairs")


def peak_inside(tables: Tables) -> Verdict:
    """Highest (mean over data sets) at neither end."""
    rows = _rows(tables.rows("strategies"), arm="folded", strategy="permute", quantile=None)
    by_set = {
        name: fmean(_column(_rows(rows, source_suite=name), "explained_variance"))
        for (name,) in unique(rows, "source_suite")
    }
    best = max(by_set, key=lambda name: by_set[name])
    seen = ", ".join(f"{name}: {value:.2f}" for name, value in by_set.items())
    return Verdict(best not in (next(iter(by_set)), list(by_set)[-1]), seen)


def dips_vanish(tables: Tables) -> Verdict:
    """Explained variance of the worst pair is higher."""
    rows = _rows(tables.rows("strategies"), arm="folded", strategy="permute", quantile=None)
    worst = {}
    for name in (DEFAULT, SIMILAR):
        of_set = _rows(rows, source_suite=name)
        worst[name] = min(
            fmean(_column(_rows(of_set, source_layer=start), "explained_variance"))
            for (start,) in unique(of_set, "source_layer")
        )
    changes = {}
    for name in worst:
        l0 = _column(_rows(tables.rows("layers"), suite=name), "stated_l0")
        change = sum(abs(b - a) for a, b in pairwise(l0))
        changes[name] = f"mean L0 {fmean(l0):.0f}, changes by {change:.1f} in all"
    seen = "; ".join(
        f"worst pair {worst[name]:.2f}, {name} set ({changes[name]})" for name in worst
    )
    return Verdict(worst[SIMILAR] > worst[DEFAULT], seen)


def fewer_explain_more(tables: Tables) -> Verdict:
    """Q = 0.1 above q = 1 in two thirds of (pair, data set)."""
    few, all_ = (
        _skipped(tables, "folded", "permute", "explained_variance", quantile=q) for q in (0.1, 1.0)
    )
    return _share([a > b for a, b in zip(few, all_, strict=True)], "(pair, data set)")


def decoding_matters_more(tables: Tables) -> Verdict:
    """Changes explained variance twice as much in two thirds of (pair, data set)."""
    rows = _rows(tables.rows("contrasts"), **OF_DEFAULT, quantile=None)
    finding = _rows(rows, arm="folded", against_arm="unfolded", strategy="permute")
    decoding = _rows(rows, arm="folded", against_arm="folded")
    name = "explained_variance_difference"
    find, decode = _column(finding, name), _column(decoding, name)
    cases = [abs(d) > 2 * abs(f) for f, d in zip(find, decode, strict=True)]
    share = _share(cases, "(pair, data set)")
    means = f"; mean gain {fmean(find):+.2f} by finding, {fmean(decode):+.2f} by decoding"
    return Verdict(share.agrees, share.seen + means)


def decoding_gains(tables: Tables) -> Verdict:
    """A gain in two thirds of (pair, data set), for the folded match."""
    rows = _rows(tables.rows("contrasts"), arm="folded", against_arm="folded", quantile=None)
    gains = _column(rows, "explained_variance_difference")
    return _share([gain > 0 for gain in gains], "(pair, data set)")


def paths_hold(tables: Tables) -> Verdict:
    """Mean Jaccard index of a step higher by 0.05."""
    found = {
        arm: fmean(_column(_rows(tables.rows("paths"), arm=arm), "jaccard"))
        for arm in ("folded", "random")
    }
    seen = f"mean Jaccard index of a step {found['folded']:.2f}, random {found['random']:.2f}"
    return Verdict(found["folded"] > found["random"] + 0.05, seen)


def planted_found(tables: Tables) -> Verdict:
    """Higher recall at every (pair, gauge)."""
    rows = _rows(tables.rows("planted"), strategy="permute")
    recall = {arm: _column(_rows(rows, arm=arm), "recall") for arm in ("folded", "unfolded")}
    pairs = zip(recall["folded"], recall["unfolded"], strict=True)
    share = _share([f > u for f, u in pairs], "(pair, gauge)", 1.0)
    means = f"; mean recall {fmean(recall['folded']):.2f}, unfolded {fmean(recall['unfolded']):.2f}"
    return Verdict(share.agrees, share.seen + means)


def planted_decoded(tables: Tables) -> Verdict:
    """More explained variance at every (pair, gauge)."""
    rows = _rows(tables.rows("planted"), arm="folded")
    explained = {
        strategy: _column(_rows(rows, strategy=strategy), "explained_variance")
        for strategy in ("permute", "permute_raw")
    }
    pairs = zip(explained["permute"], explained["permute_raw"], strict=True)
    share = _share([f > u for f, u in pairs], "(pair, gauge)", 1.0)
    means = [f"{fmean(values):.3f}" for values in explained.values()]
    return Verdict(share.agrees, f"{share.seen}; mean {means[0]}, by norm {means[1]}")


def gauge_is_nothing(tables: Tables) -> Verdict:
    """The same recall and explained variance at every pair."""
    rows = _rows(tables.rows("planted"), arm="folded", strategy="permute")
    cases = []
    for metric in ("recall", "explained_variance"):
        one, other = (
            _column(_rows(rows, source_suite=name), metric)
            for (name,) in unique(rows, "source_suite")
        )
        cases += [abs(a - b) <= 1e-6 for a, b in zip(one, other, strict=True)]
    return _share(cases, "(pair, metric) the same", 1.0)

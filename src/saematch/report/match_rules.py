"""Rules on layers, matches and paths."""

from __future__ import annotations

from itertools import pairwise
from statistics import correlation, fmean

import numpy as np

from saematch.core.pairs import DEFAULT
from saematch.core.tables import Tables
from saematch.report.frames import numbers, values_of, where
from saematch.report.rules import (
    Finding,
    MissingNumbersError,
    both,
    distance,
    of_arm,
    paired,
    rise,
    rises,
    rows,
    share,
    values,
)


def norms_grow(tables: Tables) -> Finding:
    """Each rises in three quarters of the steps."""
    layers = rows(tables["layers"], suite=DEFAULT)
    norms, thresholds = (values(layers, name) for name in ("mean_norm", "threshold_mean"))
    return both(rise(norms, "norm"), rise(thresholds, "threshold"))


def norm_changes(tables: Tables) -> Finding:
    """Correlation over pairs of at least 0.5."""
    layers = rows(tables["layers"], suite=DEFAULT)
    norm = dict(zip(layers["layer"], values(layers, "mean_norm"), strict=True))
    matches = of_arm(tables, "folded")
    vectors = values(matches, "decoder_norm_change")
    if len(vectors) < 3:
        raise MissingNumbersError("fewer than three pairs")
    states = matches["target_layer"].map(norm) - matches["source_layer"].map(norm)
    strength = correlation(states.tolist(), vectors)
    return Finding(strength >= 0.5, f"correlation {strength:.2f} over {len(vectors)} pairs")


def identity_far_above(tables: Tables) -> Finding:
    """1.2 times, in 9 of 10 (pair, part, matching)."""
    identity = of_arm(tables, "identity")
    cases = [
        baseline > 1.2 * match
        for part in ("W_enc", "b_enc", "W_dec")
        for arm in ("folded", "unfolded")
        for baseline, match in paired(identity, of_arm(tables, arm), f"mse_{part}")
    ]
    return share(cases, "(pair, part, matching)", 0.9)


def unfolded_above_in_decoder(tables: Tables) -> Finding:
    """Higher in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "mse_W_dec")
    return share([unfolded > folded for folded, unfolded in pairs], "pairs")


def unfolded_near_in_encoder(tables: Tables) -> Finding:
    """At most 1.1 times in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "mse_W_enc")
    return share([unfolded <= 1.1 * folded for folded, unfolded in pairs], "pairs")


def _folded_and_unfolded(tables: Tables, metric: str) -> list[tuple[float, float]]:
    return paired(of_arm(tables, "folded"), of_arm(tables, "unfolded"), metric)


def long_tail(tables: Tables) -> Finding:
    """Mean above the median, and identity's median above twice the median."""
    median, mean = {}, {}
    for arm in ("folded", "identity"):
        bins = rows(tables["feature_mse_histogram"], arm=arm)
        low, high = numbers(bins, "mse_low", 0.0), numbers(bins, "mse_high", 0.0)
        n_pairs = numbers(bins, "n_pairs", 0.0)
        below = np.append(0, n_pairs.cumsum())  # errors below each edge of the bins
        median[arm] = np.interp(below[-1] / 2, below, np.append(low, high[-1]))
        mean[arm] = np.average((low + high) / 2, weights=n_pairs)
    seen = f"median {median['folded']:.3g}, mean {mean['folded']:.3g}, identity's median "
    agrees = mean["folded"] > median["folded"] and median["identity"] > 2 * median["folded"]
    return Finding(bool(agrees), f"{seen}{median['identity']:.3g}")


def score_rises(tables: Tables) -> Finding:
    """Mean of the later half of the pairs above that of the earlier half."""
    return rises(values(of_arm(tables, "folded"), "matching_score"))


def recall_almost_whole(tables: Tables) -> Finding:
    """Recall of at least 0.95 in two thirds of pairs."""
    recall = values(of_arm(tables, "folded"), "recall")
    finding = share([value >= 0.95 for value in recall], "pairs")
    return Finding(finding.agrees, f"{finding.seen}; mean recall {fmean(recall):.3f}")


def found_alike(tables: Tables) -> Finding:
    """Matching scores of folded and unfolded at most 0.03 apart in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "matching_score")
    finding = share([abs(folded - unfolded) <= 0.03 for folded, unfolded in pairs], "pairs")
    folded, unfolded = (fmean(scores) for scores in zip(*pairs, strict=True))
    return Finding(finding.agrees, f"{finding.seen}; mean {folded:.3f}, unfolded {unfolded:.3f}")


def score_folded_above(tables: Tables) -> Finding:
    """Higher in two thirds of pairs."""
    pairs = _folded_and_unfolded(tables, "matching_score")
    return share([folded > unfolded for folded, unfolded in pairs], "pairs")


def score_above_chance(tables: Tables) -> Finding:
    """95 % intervals apart at every pair."""
    match = of_arm(tables, "folded")
    ends = ("matching_score_low", "matching_score_high")
    cases = [
        low > high
        for arm in ("identity", "random")
        for low, high in paired(match, of_arm(tables, arm), *ends)
    ]
    return share(cases, "(pair, baseline), intervals apart", 1.0)


def encoder_worse(tables: Tables) -> Finding:
    """Its interval below that of both parts."""
    (high,) = values(of_arm(tables, "encoder"), "matching_score_high")
    (low,) = values(of_arm(tables, "both"), "matching_score_low")
    return Finding(high < low, f"encoder at most {high:.2f}, both at least {low:.2f}")


def decoder_equal(tables: Tables) -> Finding:
    """Matching scores at most 0.05 apart."""
    (decoder,) = values(of_arm(tables, "decoder"), "matching_score")
    (two,) = values(of_arm(tables, "both"), "matching_score")
    return Finding(abs(decoder - two) <= 0.05, f"decoder {decoder:.3f}, both {two:.3f}")


def fades(tables: Tables) -> Finding:
    """The score falls in two thirds of steps (the paper: judge's score)."""
    cases = []
    for source in values_of(tables["matches"], "source_layer"):
        scores = values(of_arm(tables, "folded", source_layer=source), "matching_score")
        cases += [after < before for before, after in pairwise(scores)]
    return share(cases, "steps down")


def composition_close(tables: Tables) -> Finding:
    """Half of the pairs shared at distance 2."""
    composed = rows(tables["matches"], arm="composed")
    agreement = fmean(values(composed[distance(composed) == 2], "agreement"))
    return Finding(agreement >= 0.5, f"{agreement:.2f} of pairs shared at distance 2")


def composition_worse(tables: Tables) -> Finding:
    """Lower matching score at the farthest."""
    composed = rows(tables["matches"], arm="composed")
    farthest = composed.loc[[distance(composed).astype(float).idxmax()]]
    pair = {name: farthest[name].item() for name in ("source_layer", "target_layer")}
    (exact,) = values(of_arm(tables, "folded", **pair), "matching_score")
    (score,) = values(farthest, "matching_score")
    return Finding(score < exact, f"score {score:.2f} composed, {exact:.2f} at once")


def paths_hold(tables: Tables) -> Finding:
    """Mean Jaccard index of a step higher by 0.05."""
    paths = tables["paths"]
    folded, random = (fmean(values(rows(paths, arm=a), "jaccard")) for a in ("folded", "random"))
    seen = f"mean Jaccard index of a step {folded:.2f}, random {random:.2f}"
    return Finding(folded > random + 0.05, seen)


def planted_found(tables: Tables) -> Finding:
    """Higher recall at every (pair, gauge)."""
    planted = rows(tables["planted"], strategy="permute")
    folded, unfolded = (rows(planted, arm=arm) for arm in ("folded", "unfolded"))
    pairs = paired(folded, unfolded, "recall")
    finding = share([first > second for first, second in pairs], "(pair, gauge)", 1.0)
    means = [fmean(recall) for recall in zip(*pairs, strict=True)]
    seen = f"{finding.seen}; mean recall {means[0]:.2f}, unfolded {means[1]:.2f}"
    return Finding(finding.agrees, seen)


def planted_decoded(tables: Tables) -> Finding:
    """More explained variance at every (pair, gauge)."""
    folded = rows(tables["planted"], arm="folded")
    by_threshold, by_norm = (rows(folded, strategy=name) for name in ("permute", "permute_raw"))
    pairs = paired(by_threshold, by_norm, "explained_variance")
    finding = share([threshold > norm for threshold, norm in pairs], "(pair, gauge)", 1.0)
    threshold, norm = (fmean(explained) for explained in zip(*pairs, strict=True))
    return Finding(finding.agrees, f"{finding.seen}; mean {threshold:.3f}, by norm {norm:.3f}")


def gauge_is_nothing(tables: Tables) -> Finding:
    """The same recall and explained variance at every pair."""
    planted = rows(tables["planted"], arm="folded", strategy="permute")
    gauges = [where(planted, source_suite=suite) for suite in values_of(planted, "source_suite")]
    if len(gauges) != 2:
        raise MissingNumbersError("not two gauges")
    layers = ("source_layer", "target_layer")
    cases = [
        abs(first - second) <= 1e-6
        for metric in ("recall", "explained_variance")
        for first, second in paired(gauges[0], gauges[1], metric, keys=layers)
    ]
    return share(cases, "(pair, metric) the same", 1.0)

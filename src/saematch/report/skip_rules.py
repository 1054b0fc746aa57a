"""Rules on skipped layers: explained variance and change in loss."""

from __future__ import annotations

from itertools import pairwise
from statistics import correlation, fmean

import pandas as pd

from saematch.core.pairs import DEFAULT, NO_ARM, OF_DEFAULT
from saematch.core.tables import Tables
from saematch.report.frames import values_of
from saematch.report.rules import (
    Finding,
    MissingNumbersError,
    of_strategy,
    paired,
    rows,
    share,
    values,
)
from saematch.sae.sources.selection import SIMILAR

EXPLAINED = "explained_variance"
GAIN = "explained_variance_difference"
CASES = "(pair, data set)"


def explained_folded_above(tables: Tables) -> Finding:
    """Higher in two thirds of (pair, data set), both decoded by thresholds."""
    return _explained_above(tables, "permute")


def explained_own_scale_above(tables: Tables) -> Finding:
    """Higher in two thirds of (pair, data set), unfolded decoded by norms."""
    return _explained_above(tables, "permute_raw")


def _explained_above(tables: Tables, unfolded: str) -> Finding:
    arms = _folded(tables), of_strategy(tables, "unfolded", unfolded)
    return share([folded > unfolded for folded, unfolded in paired(*arms, EXPLAINED)], CASES)


def _folded(tables: Tables, **selection: object) -> pd.DataFrame:
    return of_strategy(tables, "folded", "permute", **selection)


def _depth(tables: Tables) -> tuple[list[int], list[int]]:
    """Return the source layers of the first 10/26 of the pairs, and of the others."""
    sources = values_of(tables["strategies"], "source_layer")
    cut = max(1, round(10 / 26 * len(sources)))
    if len(sources) < 2:
        raise MissingNumbersError("one pair")
    return sources[:cut], sources[cut:]


def _from_layers(tables: Tables, sources: list[int], metric: str) -> list[float]:
    return [
        value
        for source in sources
        for value in values(_folded(tables, source_layer=source), metric)
    ]


def explained_late(tables: Tables) -> Finding:
    """At least 0.65 in two thirds of (pair, data set) after the first 10/26."""
    late = _depth(tables)[1]
    explained = _from_layers(tables, late, EXPLAINED)
    return share([value >= 0.65 for value in explained], f"{CASES} from layer {late[0]} on")


def loss_falls(tables: Tables) -> Finding:
    """Mean change in loss higher in the first 10/26 of the pairs."""
    early, late = (fmean(_from_layers(tables, part, "delta_loss")) for part in _depth(tables))
    return Finding(early > late, f"{early:.2f} nats in early pairs, {late:.2f} in later ones")


def explained_above_chance(tables: Tables) -> Finding:
    """95 % intervals apart at every (pair, data set)."""
    arms = _folded(tables), of_strategy(tables, "random", "permute")
    pairs = paired(*arms, f"{EXPLAINED}_low", f"{EXPLAINED}_high")
    return share([low > high for low, high in pairs], f"{CASES}, intervals apart", 1.0)


def explained_above_copying(tables: Tables) -> Finding:
    """Above the copied hidden state in two thirds of (pair, data set)."""
    pairs = paired(_folded(tables), of_strategy(tables, NO_ARM, "drop"), EXPLAINED)
    return share([match > copy for match, copy in pairs], CASES)


def explained_below_zero(tables: Tables) -> Finding:
    """Below zero at some (pair, data set), the interval too."""
    high = values(_folded(tables), f"{EXPLAINED}_high")
    return share([value < 0 for value in high], CASES, 1 / len(high))


def gains_where_thresholds_grow(tables: Tables) -> Finding:
    """Correlation over pairs of gain and growth of the mean threshold at least 0.5."""
    layers = rows(tables["layers"], suite=DEFAULT)
    threshold = dict(zip(layers["layer"], values(layers, "threshold_mean"), strict=True))
    contrasts = _decoding(tables["contrasts"])
    gains = contrasts.assign(gain=values(contrasts, GAIN))
    pair = ["source_layer", "target_layer"]
    means = gains.groupby(pair, sort=False, as_index=False)["gain"].mean()
    if len(means) < 3:
        raise MissingNumbersError("fewer than three pairs")
    growth = means["target_layer"].map(threshold) / means["source_layer"].map(threshold)
    strength = correlation(growth.tolist(), means["gain"].tolist())
    return Finding(strength >= 0.5, f"correlation {strength:.2f} over {len(means)} pairs")


def _decoding(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the differences between the two decodings of the whole folded match."""
    strategies = {"strategy": "permute", "against_strategy": "permute_raw"}
    return rows(contrasts, arm="folded", against_arm="folded", quantile=None, **strategies)


def peak_inside(tables: Tables) -> Finding:
    """Highest (mean over data sets) at neither end."""
    cells = _whole_of_all_suites(tables)
    by_suite = {
        suite: fmean(values(rows(cells, source_suite=suite), EXPLAINED))
        for suite in values_of(cells, "source_suite")
    }
    suites = list(by_suite)
    best = max(suites, key=by_suite.__getitem__)
    seen = ", ".join(f"{suite}: {value:.2f}" for suite, value in by_suite.items())
    return Finding(best not in (suites[0], suites[-1]), seen)


def _whole_of_all_suites(tables: Tables) -> pd.DataFrame:
    strategies = tables["strategies"]
    return rows(strategies, arm="folded", strategy="permute", quantile=None)


def dips_vanish(tables: Tables) -> Finding:
    """Explained variance of the worst pair is higher."""
    cells = _whole_of_all_suites(tables)
    worst, seen = {}, []
    for suite in (DEFAULT, SIMILAR):
        of_suite = rows(cells, source_suite=suite)
        worst[suite] = min(
            fmean(values(rows(of_suite, source_layer=source), EXPLAINED))
            for source in values_of(of_suite, "source_layer")
        )
        l0 = values(rows(tables["layers"], suite=suite), "stated_l0")
        change = sum(abs(after - before) for before, after in pairwise(l0))
        changes = f"mean L0 {fmean(l0):.0f}, changes by {change:.1f} in all"
        seen.append(f"worst pair {worst[suite]:.2f}, {suite} set ({changes})")
    return Finding(worst[SIMILAR] > worst[DEFAULT], "; ".join(seen))


def fewer_explain_more(tables: Tables) -> Finding:
    """Q = 0.1 above q = 1 in two thirds of (pair, data set)."""
    tenth, whole = (_folded(tables, quantile=quantile) for quantile in (0.1, 1.0))
    pairs = paired(tenth, whole, EXPLAINED)
    return share([of_tenth > of_whole for of_tenth, of_whole in pairs], CASES)


def decoding_matters_more(tables: Tables) -> Finding:
    """Changes explained variance twice as much in two thirds of (pair, data set)."""
    contrasts = rows(tables["contrasts"], **OF_DEFAULT, quantile=None)
    finding = rows(contrasts, arm="folded", against_arm="unfolded", strategy="permute")
    pairs = paired(finding, _decoding(contrasts), GAIN)
    finding = share([abs(decode) > 2 * abs(find) for find, decode in pairs], CASES)
    find, decode = (fmean(gains) for gains in zip(*pairs, strict=True))
    means = f"; mean gain {find:+.2f} by finding, {decode:+.2f} by decoding"
    return Finding(finding.agrees, finding.seen + means)


def decoding_gains(tables: Tables) -> Finding:
    """A gain in two thirds of (pair, data set), for the folded match."""
    gains = values(_decoding(tables["contrasts"]), GAIN)
    return share([gain > 0 for gain in gains], CASES)

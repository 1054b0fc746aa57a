"""What the paper's figures show, and rules on a run's numbers that say whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import correlation, fmean
from typing import Any

from saematch.places import DEFAULT
from saematch.report.style import unique, where
from saematch.results import Row

Tables = Mapping[str, list[Row]]
MOST = 2 / 3
"""Share of cases in which a shape must show to count."""


@dataclass(frozen=True)
class Verdict:
    """What a rule found."""

    agrees: bool
    seen: str
    """The numbers that decided."""


@dataclass(frozen=True)
class Claim:
    """One statement about an experiment, and the rule that decides it."""

    experiment: str
    source: str
    """Figure of the paper; or ``control`` and ``mechanism`` for what the paper does not show."""
    says: str
    rule: str
    check: Callable[[Tables], Verdict]


def _share(cases: Iterable[bool], of: str, needed: float = MOST) -> Verdict:
    found = list(cases)
    seen = f"{sum(found)} of {len(found)} {of}"
    return Verdict(bool(found) and sum(found) >= needed * len(found), seen)


def _both(*verdicts: Verdict) -> Verdict:
    agrees = all(verdict.agrees for verdict in verdicts)
    return Verdict(agrees, "; ".join(verdict.seen for verdict in verdicts))


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name] or 0) for row in rows]


def _of_arm(tables: Tables, arm: str, metric: str, **values: object) -> list[float]:
    return _column(where(tables["matches"], **{"arm": arm, "saes": DEFAULT, **values}), metric)


def _skipped(tables: Tables, arm: str, strategy: str, metric: str, **values: object) -> list[float]:
    fixed: dict[str, Any] = {"quantile": None, "saes": DEFAULT, **values}
    return _column(where(tables["strategies"], arm=arm, strategy=strategy, **fixed), metric)


def _rise(values: Sequence[float], of: str) -> Verdict:
    steps = [after > before for before, after in pairwise(values)]
    return _share(steps, f"steps up ({of})", 0.75)


def _norms_grow(tables: Tables) -> Verdict:
    layers = where(tables["layers"], saes=DEFAULT)
    norms, thresholds = (_column(layers, name) for name in ("mean_norm", "threshold_mean"))
    return _both(_rise(norms, "norm"), _rise(thresholds, "threshold"))


def _norm_changes(tables: Tables) -> Verdict:
    norms = _column(where(tables["layers"], saes=DEFAULT), "mean_norm")
    states = [after - before for before, after in pairwise(norms)]
    vectors = _of_arm(tables, "folded", "decoder_norm_change")
    found = correlation(states, vectors)
    return Verdict(found >= 0.5, f"correlation {found:.2f} over {len(states)} pairs")


def _identity_far_above(tables: Tables) -> Verdict:
    cases = []
    for part in ("W_enc", "b_enc", "W_dec"):
        identity = _of_arm(tables, "identity", f"mse_{part}")
        for arm in ("folded", "unfolded"):
            found = _of_arm(tables, arm, f"mse_{part}")
            cases += [i > 1.2 * m for i, m in zip(identity, found, strict=True)]
    return _share(cases, "(pair, part, matching)", 0.9)


def _unfolded_above_in_decoder(tables: Tables) -> Verdict:
    pairs = _folded_and_unfolded(tables, "mse_W_dec")
    return _share([unfolded > folded for folded, unfolded in pairs], "pairs")


def _unfolded_near_in_encoder(tables: Tables) -> Verdict:
    pairs = _folded_and_unfolded(tables, "mse_W_enc")
    return _share([unfolded <= 1.1 * folded for folded, unfolded in pairs], "pairs")


def _folded_and_unfolded(tables: Tables, metric: str) -> Iterable[tuple[float, float]]:
    return zip(*(_of_arm(tables, arm, metric) for arm in ("folded", "unfolded")), strict=True)


def _long_tail(tables: Tables) -> Verdict:
    median = {}
    for arm in ("folded", "identity"):
        bins = where(tables["feature_mse_histogram"], arm=arm)
        middle = [(float(b["mse_low"] or 0) + float(b["mse_high"] or 0)) / 2 for b in bins]
        each = [m for m, b in zip(middle, bins, strict=True) for _ in range(int(b["n_pairs"] or 0))]
        median[arm] = each[len(each) // 2]
        if arm == "folded":
            mean = fmean(each)
    seen = f"median {median['folded']:.3g}, mean {mean:.3g}, identity's median "
    agrees = mean > median["folded"] and median["identity"] > 2 * median["folded"]
    return Verdict(agrees, f"{seen}{median['identity']:.3g}")


def _score_rises(tables: Tables) -> Verdict:
    score = _of_arm(tables, "folded", "matching_score")
    half = len(score) // 2
    early, late = fmean(score[:half]), fmean(score[-half:])
    return Verdict(late > early, f"{early:.2f} in the first {half} pairs, {late:.2f} in the last")


def _score_folded_above(tables: Tables) -> Verdict:
    pairs = _folded_and_unfolded(tables, "matching_score")
    return _share([folded > unfolded for folded, unfolded in pairs], "pairs")


def _score_above_chance(tables: Tables) -> Verdict:
    low = _of_arm(tables, "folded", "matching_score_low")
    cases = [
        mine > theirs
        for arm in ("identity", "random")
        for mine, theirs in zip(low, _of_arm(tables, arm, "matching_score_high"), strict=True)
    ]
    return _share(cases, "(pair, baseline), intervals apart", 1.0)


def _encoder_worse(tables: Tables) -> Verdict:
    (high,) = _of_arm(tables, "encoder", "matching_score_high")
    (low,) = _of_arm(tables, "both", "matching_score_low")
    return Verdict(high < low, f"encoder at most {high:.2f}, both at least {low:.2f}")


def _decoder_equal(tables: Tables) -> Verdict:
    (decoder,) = _of_arm(tables, "decoder", "matching_score")
    (both,) = _of_arm(tables, "both", "matching_score")
    return Verdict(abs(decoder - both) <= 0.05, f"decoder {decoder:.3f}, both {both:.3f}")


def _fades(tables: Tables) -> Verdict:
    cases = []
    for (start,) in unique(tables["matches"], "layer_from"):
        score = _of_arm(tables, "folded", "matching_score", layer_from=start)
        cases += [after < before for before, after in pairwise(score)]
    return _share(cases, "steps down")


def _distance(row: Row) -> float:
    return float(row["layer_to"] or 0) - float(row["layer_from"] or 0)


def _composition_close(tables: Tables) -> Verdict:
    composed = where(tables["matches"], arm="composed")
    agreement = fmean(_column([r for r in composed if _distance(r) == 2], "agreement"))
    return Verdict(agreement >= 0.5, f"{agreement:.2f} of pairs shared at distance 2")


def _composition_worse(tables: Tables) -> Verdict:
    longest = max(where(tables["matches"], arm="composed"), key=_distance)
    place = {name: longest[name] for name in ("layer_from", "layer_to")}
    (exact,) = _of_arm(tables, "folded", "matching_score", **place)
    score = float(longest["matching_score"] or 0)
    return Verdict(score < exact, f"score {score:.2f} composed, {exact:.2f} at once")


def _explained_folded_above(tables: Tables) -> Verdict:
    pairs = zip(
        _skipped(tables, "folded", "permute", "explained_variance"),
        _skipped(tables, "unfolded", "permute_raw", "explained_variance"),
        strict=True,
    )
    return _share([folded > unfolded for folded, unfolded in pairs], "(pair, data set)")


def _depth(tables: Tables) -> tuple[list[int], list[int]]:
    """Return the earlier layers of the first 10/26 of the pairs, and of the others."""
    starts = [start for (start,) in unique(tables["strategies"], "layer_from")]
    cut = max(1, round(10 / 26 * len(starts)))
    return starts[:cut], starts[cut:]


def _explained_late(tables: Tables) -> Verdict:
    late = _depth(tables)[1]
    values = [
        value
        for start in late
        for value in _skipped(tables, "folded", "permute", "explained_variance", layer_from=start)
    ]
    return _share([v >= 0.65 for v in values], f"(pair, data set) from layer {late[0]} on")


def _loss_falls(tables: Tables) -> Verdict:
    early, late = (
        fmean(
            value
            for start in starts
            for value in _skipped(tables, "folded", "permute", "delta_loss", layer_from=start)
        )
        for starts in _depth(tables)
    )
    return Verdict(early > late, f"{early:.2f} nats in early pairs, {late:.2f} in later ones")


def _explained_above_chance(tables: Tables) -> Verdict:
    pairs = zip(
        _skipped(tables, "folded", "permute", "explained_variance_low"),
        _skipped(tables, "random", "permute", "explained_variance_high"),
        strict=True,
    )
    return _share([low > high for low, high in pairs], "(pair, data set), intervals apart", 1.0)


def _peak_inside(tables: Tables) -> Verdict:
    rows = where(tables["strategies"], arm="folded", strategy="permute", quantile=None)
    by_set = {
        name: fmean(_column(where(rows, saes=name), "explained_variance"))
        for (name,) in unique(rows, "saes")
    }
    best = max(by_set, key=lambda name: by_set[name])
    seen = ", ".join(f"{name}: {value:.2f}" for name, value in by_set.items())
    return Verdict(best not in (next(iter(by_set)), list(by_set)[-1]), seen)


def _dips_vanish(tables: Tables) -> Verdict:
    rows = where(tables["strategies"], arm="folded", strategy="permute", quantile=None)
    worst = {}
    for name in (DEFAULT, "similar"):
        of_set = where(rows, saes=name)
        worst[name] = min(
            fmean(_column(where(of_set, layer_from=start), "explained_variance"))
            for (start,) in unique(of_set, "layer_from")
        )
    changes = {}
    for name in worst:
        l0 = _column(where(tables["layers"], saes=name), "stated_l0")
        change = sum(abs(b - a) for a, b in pairwise(l0))
        changes[name] = f"mean L0 {fmean(l0):.0f}, changes by {change:.1f} in all"
    seen = "; ".join(
        f"worst pair {worst[name]:.2f}, {name} set ({changes[name]})" for name in worst
    )
    return Verdict(worst["similar"] > worst[DEFAULT], seen)


def _fewer_explain_more(tables: Tables) -> Verdict:
    few, all_ = (
        _skipped(tables, "folded", "permute", "explained_variance", quantile=q) for q in (0.1, 1.0)
    )
    return _share([a > b for a, b in zip(few, all_, strict=True)], "(pair, data set)")


def _decoding_matters_more(tables: Tables) -> Verdict:
    rows = where(tables["contrasts"], saes=DEFAULT, quantile=None)
    finding = where(rows, arm="folded", against_arm="unfolded", strategy="permute")
    decoding = where(rows, arm="folded", against_arm="folded")
    name = "explained_variance_difference"
    find, decode = _column(finding, name), _column(decoding, name)
    share = _share([abs(d) > abs(f) for f, d in zip(find, decode, strict=True)], "(pair, data set)")
    means = f"; mean gain {fmean(find):+.2f} by finding, {fmean(decode):+.2f} by decoding"
    return Verdict(share.agrees, share.seen + means)


def _decoding_gains(tables: Tables) -> Verdict:
    rows = where(tables["contrasts"], arm="folded", against_arm="folded", quantile=None)
    gains = _column(rows, "explained_variance_difference")
    return _share([gain > 0 for gain in gains], "(pair, data set)")


def _paths_hold(tables: Tables) -> Verdict:
    found = {
        arm: fmean(_column(where(tables["paths"], arm=arm), "jaccard"))
        for arm in ("folded", "random")
    }
    seen = f"mean Jaccard index of a step {found['folded']:.2f}, random {found['random']:.2f}"
    return Verdict(found["folded"] > found["random"] + 0.05, seen)


def _planted_found(tables: Tables) -> Verdict:
    rows = where(tables["planted"], strategy="permute")
    recall = {arm: _column(where(rows, arm=arm), "recall") for arm in ("folded", "unfolded")}
    pairs = zip(recall["folded"], recall["unfolded"], strict=True)
    share = _share([f > u for f, u in pairs], "(pair, gauge)", 1.0)
    means = f"; mean recall {fmean(recall['folded']):.2f}, unfolded {fmean(recall['unfolded']):.2f}"
    return Verdict(share.agrees, share.seen + means)


def _planted_decoded(tables: Tables) -> Verdict:
    rows = where(tables["planted"], arm="folded")
    explained = {
        strategy: _column(where(rows, strategy=strategy), "explained_variance")
        for strategy in ("permute", "permute_raw")
    }
    pairs = zip(explained["permute"], explained["permute_raw"], strict=True)
    share = _share([f > u for f, u in pairs], "(pair, gauge)", 1.0)
    means = [f"{fmean(values):.3f}" for values in explained.values()]
    return Verdict(share.agrees, f"{share.seen}; mean {means[0]}, by norm {means[1]}")


def _gauge_is_nothing(tables: Tables) -> Verdict:
    rows = where(tables["planted"], arm="folded", strategy="permute")
    sets = [name for (name,) in unique(rows, "saes")]
    one, other = (_column(where(rows, saes=name), "recall") for name in sets)
    return _share([a == b for a, b in zip(one, other, strict=True)], "pairs, equal recall", 1.0)


_SKIPPED = (
    (
        "folded above unfolded in explained variance",
        "higher (each decoded in its own scale) in two thirds of (pair, data set)",
        _explained_folded_above,
    ),
    (
        "explained variance near or above 0.7 in later layers",
        "at least 0.65 in two thirds of (pair, data set) after the first 10/26",
        _explained_late,
    ),
    (
        "the loss suffers in early layers, little in later ones",
        "mean change in loss higher in the first 10/26 of the pairs",
        _loss_falls,
    ),
)

_FOLDED = (
    (
        "folding matters for decoding, little for finding",
        "the larger change of explained variance in two thirds of (pair, data set)",
        _decoding_matters_more,
    ),
    (
        "decoding in units of the thresholds is better",
        "a gain in two thirds of (pair, data set), for the folded match",
        _decoding_gains,
    ),
)

CLAIMS = (
    Claim("norms", "figure 1", "norms of hidden states and thresholds grow with the layer",
          "each rises in three quarters of the steps", _norms_grow),
    Claim("norms", "figure 1", "norms of folded decoder vectors change as hidden states do",
          "correlation over pairs of at least 0.5", _norm_changes),
    Claim("mse", "figure 3", "identity's error is far above both matchings' in every part",
          "1.2 times, in 9 of 10 (pair, part, matching)", _identity_far_above),
    Claim("mse", "figure 3", "unfolded is above folded in W_dec",
          "higher in two thirds of pairs", _unfolded_above_in_decoder),
    Claim("mse", "figure 3", "unfolded is below or near folded in W_enc",
          "at most 1.1 times in two thirds of pairs", _unfolded_near_in_encoder),
    Claim("feature_mse", "figure 5", "most matched features have a small error, few a large one",
          "mean above the median, and identity's median above twice the median", _long_tail),
    Claim("matching_score", "figure 7", "the score rises with the layer",
          "mean of the later half of the pairs above that of the earlier half", _score_rises),
    Claim("matching_score", "figure 7", "folded above unfolded",
          "higher in two thirds of pairs", _score_folded_above),
    Claim("matching_score", "control", "the match is above identity and random",
          "95 % intervals apart at every pair", _score_above_chance),
    Claim("parts", "figure 12", "the encoder alone is clearly worse",
          "its interval below that of both parts", _encoder_worse),
    Claim("parts", "figure 12", "the decoder alone is about equal to both",
          "matching scores at most 0.05 apart", _decoder_equal),
    Claim("persistence", "figure 8", "likeness fades with the distance",
          "the score falls in two thirds of steps (the paper: judge's score)", _fades),
    Claim("persistence", "figure 8", "composition is close to the match at once for near layers",
          "half of the pairs shared at distance 2", _composition_close),
    Claim("persistence", "figure 8", "composition is worse for far layers",
          "lower matching score at the farthest", _composition_worse),
    *(Claim("skip_layers", "figures 10, 11", *claim) for claim in _SKIPPED),
    Claim("skip_layers", "control", "the match is above a random permutation",
          "95 % intervals apart at every (pair, data set)", _explained_above_chance),
    *(Claim("llama", "figure 13", *claim) for claim in _SKIPPED),
    Claim("sparsity", "figure 14", "explained variance peaks at a middling mean L0",
          "highest (mean over data sets) at neither end", _peak_inside),
    Claim("similar_l0", "figure 15", "SAEs of similar L0 remove the dips",
          "explained variance of the worst pair is higher", _dips_vanish),
    Claim("quantiles", "figures 16, 17", "permuting fewer features explains more",
          "q = 0.1 above q = 1 in two thirds of (pair, data set)", _fewer_explain_more),
    *(Claim(name, "follow-up", *claim) for name in ("skip_layers", "folding") for claim in _FOLDED),
    Claim("paths", "control", "paths hold together better than random ones",
          "mean Jaccard index of a step higher by 0.05", _paths_hold),
    Claim("planted", "mechanism", "folding finds pairs that only thresholds tell apart",
          "higher recall at every (pair, gauge)", _planted_found),
    Claim("planted", "mechanism", "decoding folded keeps up with growing thresholds",
          "more explained variance at every (pair, gauge)", _planted_decoded),
    Claim("planted", "mechanism", "the norms of decoder vectors do not matter to folding",
          "the same recall at every pair", _gauge_is_nothing),
)  # fmt: skip
"""Everything that a reproduction decides."""

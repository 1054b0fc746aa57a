"""Every rule, on numbers that agree with the claim and on numbers that do not."""

import pytest

from saematch.core.tables import Tables
from saematch.report.claims import CLAIMS

PAIRS = [(t, t + 1) for t in range(5)]
DEFAULT = {"source_suite": "default", "target_suite": "default"}
MSE = ("mse_W_enc", "mse_b_enc", "mse_W_dec")


def at(pair, **values):
    return {**DEFAULT, "source_layer": pair[0], "target_layer": pair[1], **values}


def by_arm(metric, arms, pairs=PAIRS, **more):
    """Rows of a metric: for each arm a number for all pairs or a list with one for each pair."""
    rows = []
    for arm, values in arms.items():
        values = values if isinstance(values, list) else [values] * len(pairs)
        rows += [at(p, arm=arm, **{metric: v}, **more) for p, v in zip(pairs, values, strict=True)]
    return rows


def scores(**arms):
    """Matching scores with intervals of 0.02 to each side."""
    rows = by_arm("matching_score", arms, PAIRS[: len(next(iter(arms.values())))])
    return [
        row | {f"matching_score_{end}": row["matching_score"] + by
               for end, by in (("low", -0.02), ("high", 0.02))}
        for row in rows
    ]  # fmt: skip


def strategies(metric, cells, quantile=None):
    rows = []
    for (arm, strategy), values in cells.items():
        rows += by_arm(metric, {arm: values}, strategy=strategy, quantile=quantile, dataset="d")
    return [
        r | {f"{metric}_low": r[metric] - 0.02, f"{metric}_high": r[metric] + 0.02} for r in rows
    ]


def layers(norms, thresholds):
    return [{"suite": "default", "layer": n, "mean_norm": norm, "threshold_mean": theta}
            for n, (norm, theta) in enumerate(zip(norms, thresholds, strict=True))]  # fmt: skip


def judged(shares=0.2, folded=2.2, floor=1.2, kappa=0.7):
    """A judged run: unfolded at 2, intervals of 0.2 to each side."""
    rows = [
        row | {"same_share": share}
        for row, share in zip(
            by_arm("judge_score", {"folded": folded, "unfolded": 2.0}, role="pair"),
            (shares if isinstance(shares, list) else [shares] * 5) * 2,
            strict=True,
        )
    ]
    nowhere = {**DEFAULT, "source_layer": None, "target_layer": None}
    for role, arm, score in (("pair", "folded", folded), ("random", "none", floor)):
        ends = {"judge_score_low": score - 0.2, "judge_score_high": score + 0.2}
        rows.append(nowhere | {"role": role, "arm": arm, "judge_score": score} | ends)
    swapped = {"compared": "swapped", "kappa": kappa, "score_difference": 0.05}
    return {"judge_scores": rows, "judge_agreement": [swapped]}


def by_label(same, different):
    rows = []
    for pair in PAIRS:
        for label, error in (("SAME", same), ("MAYBE", 1.5), ("DIFFERENT", different)):
            rows.append(at(pair, arm="folded", label=label, n_pairs=9, mse_median=error))
    return {"mse_by_label": rows}


def fading(score=(2.5, 2.2, 2.0, 1.8), composed=None):
    """Scores from layers 0 and 1, at once and composed: the latter a bit lower from distance 2."""
    rows = []
    for start in (0, 1):
        for distance, value in enumerate(score, 1):
            lower = (2.1, 1.8, 1.5)[distance - 2] if distance > 1 else value
            for arm, judge_score in (("folded", value), ("composed", composed or lower)):
                pair = at((start, start + distance), arm=arm, role="pair")
                rows.append(pair | {"judge_score": judge_score})
    return {"judge_scores": rows}


def contrasts(find, decode):
    name = "explained_variance_difference"
    rows = []
    for pair in PAIRS:
        row = at(pair, dataset="d", quantile=None, arm="folded", strategy="permute")
        rows += [
            row | {"against_arm": "unfolded", "against_strategy": "permute", name: find},
            row | {"against_arm": "folded", "against_strategy": "permute_raw", name: decode},
            row | {"against_arm": "random", "against_strategy": "permute", name: 9.0},
        ]
    return rows


def gains(values):
    name = "explained_variance_difference"
    fixed = {"dataset": "d", "quantile": None, "arm": "folded", "strategy": "permute",
             "against_arm": "folded", "against_strategy": "permute_raw"}  # fmt: skip
    return [at(pair, **fixed, **{name: v}) for pair, v in zip(PAIRS, values, strict=True)]


def errors(identity, folded, unfolded):
    rows = []
    for arm, values in (("identity", identity), ("folded", folded), ("unfolded", unfolded)):
        rows += [at(p, arm=arm, **dict(zip(MSE, values, strict=True))) for p in PAIRS]
    return {"matches": rows}


def histogram(folded, identity):
    rows = []
    for arm, counts in (("folded", folded), ("identity", identity)):
        rows += [at((0, 1), arm=arm, mse_low=float(n), mse_high=n + 1.0, n_pairs=count)
                 for n, count in enumerate(counts)]  # fmt: skip
    return {"feature_mse_histogram": rows}


def persistent(exact, composed, agreement):
    pairs = [(0, 1), (0, 2), (0, 3)]
    rows = by_arm("matching_score", {"folded": exact, "composed": composed}, pairs)
    return {"matches": [r | {"agreement": agreement} for r in rows]}


def in_sets(by_set, l0=None):
    rows, stated = [], []
    for name, values in by_set.items():
        of_set = strategies("explained_variance", {("folded", "permute"): values})
        rows += [row | dict.fromkeys(DEFAULT, name) for row in of_set]
        stated += [{"suite": name, "layer": n, "stated_l0": 20.0} for n in range(6)]
    return {"strategies": rows, "layers": stated}


def shares(few, every):
    cell = ("folded", "permute")
    return {
        "strategies": strategies("explained_variance", {cell: few}, 0.1)
        + strategies("explained_variance", {cell: every}, 1.0)
    }


def planted(recall=(0.9, 0.3), explained=(0.99, 0.9), other=0.9):
    rows = []
    for suite in ("default", "other_gauge"):
        for arm, of_arm in (("folded", recall[0]), ("unfolded", recall[1])):
            for strategy, value in zip(("permute", "permute_raw"), explained, strict=True):
                shown = other if suite == "other_gauge" and arm == "folded" else of_arm
                rows.append({**dict.fromkeys(DEFAULT, suite), "source_layer": 0,
                             "target_layer": 1, "arm": arm, "strategy": strategy, "recall": shown,
                             "explained_variance": value})  # fmt: skip
    return {"planted": rows}


def skipped(metric, **cells):
    named = {tuple(name.split("__")): values for name, values in cells.items()}
    return {"strategies": strategies(metric, named)}


EV, DL = "explained_variance", "delta_loss"
LATE = [0.1, 0.2, 0.7, 0.7, 0.9]
CASES = {
    ("norms", "norms of hidden"): (
        {"layers": layers([1, 2, 3, 4, 3.9], [1, 2, 3, 2, 5])},
        {"layers": layers([1, 2, 3, 4, 5], [1, 2, 1, 2, 1])},
    ),
    ("norms", "norms of folded"): (
        {"layers": layers([1, 2, 4, 5, 9, 10], [1] * 6),
         "matches": by_arm("decoder_norm_change", {"folded": [1, 2.1, 1, 3, 1.2]})},
        {"layers": layers([1, 2, 4, 5, 9, 10], [1] * 6),
         "matches": by_arm("decoder_norm_change", {"folded": [3, 1, 3, 1, 3]})},
    ),
    ("mse", "identity's error"): (
        errors((2, 2, 2), (1, 1, 1), (1, 1.5, 1)),
        errors((2, 2, 2), (1, 1.9, 1), (1, 1.5, 1)),
    ),
    ("mse", "unfolded is above"): (
        errors((2, 2, 2), (1, 1, 1), (1.05, 1, 1.2)),
        errors((2, 2, 2), (1, 1, 1), (1.05, 1, 0.9)),
    ),
    ("mse", "unfolded is below"): (
        errors((2, 2, 2), (1, 1, 1), (1.05, 1, 1.2)),
        errors((2, 2, 2), (1, 1, 1), (1.2, 1, 1.2)),
    ),
    ("feature_mse", "most matched"): (
        histogram([50, 30, 5, 3, 2, 1], [0, 0, 5, 50, 5, 0]),
        histogram([1, 2, 5, 30, 50, 2], [0, 0, 5, 50, 5, 0]),
    ),
    ("matching_score", "the score rises"): (
        {"matches": scores(folded=[0.2, 0.3, 0.4, 0.5, 0.6])},
        {"matches": scores(folded=[0.6, 0.5, 0.4, 0.3, 0.2])},
    ),
    ("matching_score", "folded above"): (
        {"matches": scores(folded=[0.5] * 5, unfolded=[0.4] * 4 + [0.6])},
        {"matches": scores(folded=[0.5] * 5, unfolded=[0.4] * 3 + [0.6] * 2)},
    ),
    ("matching_score", "the match is above"): (
        {"matches": scores(folded=[0.5] * 5, identity=[0.1] * 5, random=[0.4] * 5)},
        {"matches": scores(folded=[0.5] * 5, identity=[0.1] * 5, random=[0.4] * 4 + [0.47])},
    ),
    ("matching_score", "the hidden permutation"): (
        {"matches": by_arm("recall", {"folded": [1.0, 0.96, 0.95, 0.97, 0.5]})},
        {"matches": by_arm("recall", {"folded": [1.0, 0.96, 0.94, 0.97, 0.5]})},
    ),
    ("skip_layers", "folding hardly"): (
        {"matches": scores(folded=[0.5] * 5, unfolded=[0.52] * 4 + [0.2])},
        {"matches": scores(folded=[0.5] * 5, unfolded=[0.54] * 4 + [0.5])},
    ),
    ("skip_layers", "decoding folded gains"): (
        {"layers": layers([1] * 6, [1, 2, 3, 6, 7, 14]), "contrasts": gains([2, 1.5, 2, 1, 2.2])},
        {"layers": layers([1] * 6, [1, 2, 3, 6, 7, 14]), "contrasts": gains([1, 1.5, 1, 2, 1])},
    ),
    ("skip_layers", "the match explains more"): (
        skipped(EV, folded__permute=[0.6] * 4 + [0.4], none__drop=0.5),
        skipped(EV, folded__permute=[0.6] * 3 + [0.4] * 2, none__drop=0.5),
    ),
    ("skip_layers", "pairs forced"): (
        skipped(EV, folded__permute=[0.6, 0.5, -0.1, 0.3, 0.2]),
        skipped(EV, folded__permute=[0.6, 0.5, -0.01, 0.3, 0.2]),
    ),
    ("parts", "the encoder"): (
        {"matches": scores(both=[0.6], encoder=[0.4])},
        {"matches": scores(both=[0.6], encoder=[0.58])},
    ),
    ("parts", "the decoder"): (
        {"matches": scores(both=[0.6], decoder=[0.57])},
        {"matches": scores(both=[0.6], decoder=[0.5])},
    ),
    ("persistence", "likeness"): (
        persistent([0.6, 0.5, 0.4], [0.6, 0.5, 0.3], 0.8),
        persistent([0.4, 0.5, 0.6], [0.6, 0.5, 0.3], 0.8),
    ),
    ("persistence", "composition is close"): (
        persistent([0.6, 0.5, 0.4], [0.6, 0.5, 0.3], 0.8),
        persistent([0.6, 0.5, 0.4], [0.6, 0.5, 0.3], 0.4),
    ),
    ("persistence", "composition is worse"): (
        persistent([0.6, 0.5, 0.4], [0.6, 0.5, 0.3], 0.8),
        persistent([0.6, 0.5, 0.4], [0.6, 0.5, 0.45], 0.8),
    ),
    ("skip_layers", "folded above unfolded in explained variance"): (
        skipped(EV, folded__permute=0.5, unfolded__permute_raw=0.9, unfolded__permute=0.4),
        skipped(EV, folded__permute=0.5, unfolded__permute_raw=0.1, unfolded__permute=0.6),
    ),
    ("skip_layers", "folded above unfolded in explained variance, each"): (
        skipped(EV, folded__permute=0.5, unfolded__permute_raw=0.4, unfolded__permute=0.9),
        skipped(EV, folded__permute=0.5, unfolded__permute_raw=0.6, unfolded__permute=0.1),
    ),
    ("skip_layers", "explained variance near"): (
        skipped(EV, folded__permute=LATE),
        skipped(EV, folded__permute=LATE[::-1]),
    ),
    ("skip_layers", "the loss suffers"): (
        skipped(DL, folded__permute=LATE[::-1]),
        skipped(DL, folded__permute=LATE),
    ),
    ("skip_layers", "the match is above"): (
        skipped(EV, folded__permute=0.5, random__permute=0.4),
        skipped(EV, folded__permute=0.5, random__permute=[0.4, 0.4, 0.4, 0.4, 0.47]),
    ),
    ("skip_layers", "folding matters"): (
        {"contrasts": contrasts(find=0.01, decode=-0.1)},
        {"contrasts": contrasts(find=0.09, decode=-0.1)},
    ),
    ("skip_layers", "decoding in units"): (
        {"contrasts": contrasts(find=0.2, decode=0.1)},
        {"contrasts": contrasts(find=0.01, decode=-0.1)},
    ),
    ("sparsity", "explained variance peaks"): (
        in_sets({"l0_10": 0.4, "l0_20": 0.6, "l0_40": 0.5}),
        in_sets({"l0_10": 0.7, "l0_20": 0.6, "l0_40": 0.5}),
    ),
    ("similar_l0", "SAEs of similar"): (
        in_sets({"default": [0.5, 0.1, 0.5, 0.5, 0.5], "similar": 0.4}),
        in_sets({"default": 0.5, "similar": [0.5, 0.1, 0.9, 0.9, 0.9]}),
    ),
    ("quantiles", "permuting fewer"): (shares(0.6, 0.5), shares(0.5, 0.6)),
    ("paths", "paths hold"): (
        {"paths": by_arm("jaccard", {"folded": 0.5, "random": 0.1})},
        {"paths": by_arm("jaccard", {"folded": 0.12, "random": 0.1})},
    ),
    ("judge_layers", "SAME is rarer"): (
        judged(shares=[0.1, 0.1, 0.2, 0.3, 0.4]), judged(shares=[0.4, 0.3, 0.2, 0.1, 0.1])
    ),
    ("judge_layers", "folded judged"): (judged(folded=2.2), judged(folded=1.9)),
    ("judge_layers", "matched pairs"): (judged(floor=1.2), judged(floor=2.0)),
    ("judge_layers", "the order of"): (judged(kappa=0.7), judged(kappa=0.5)),
    ("mse_by_label", "pairs judged"): (by_label(1.0, 2.0), by_label(2.0, 1.0)),
    ("persistence_judged", "judged likeness"): (
        fading([2.5, 2.2, 2.0, 1.8]), fading([2.0, 2.2, 2.0, 2.1])
    ),
    ("persistence_judged", "composition is judged close"): (fading(), fading(composed=1.5)),
    ("persistence_judged", "composition is judged below"): (fading(), fading(composed=2.1)),
    ("planted", "folding finds"): (planted(), planted(recall=(0.3, 0.3), other=0.3)),
    ("planted", "decoding folded"): (planted(), planted(explained=(0.9, 0.99))),
    ("planted", "the norms"): (planted(), planted(other=0.89)),
}  # fmt: skip


def the_claim(experiment, beginning):
    claims = [c for c in CLAIMS if c.experiment == experiment and c.says.startswith(beginning)]
    return min(claims, key=lambda claim: len(claim.says))


@pytest.mark.parametrize(("name", "tables"), CASES.items(), ids=lambda value: str(value)[:50])
def test_a_rule_distinguishes_agreement_from_disagreement(name, tables):
    claim = the_claim(*name)
    agreeing, disagreeing = (claim.check(Tables.of(case)) for case in tables)
    assert agreeing.agrees, agreeing.seen
    assert not disagreeing.agrees, disagreeing.seen


def test_every_rule_has_a_case():
    checked = {the_claim(*name).rule_on for name in CASES}
    assert {claim.rule_on for claim in CLAIMS} == checked


def test_a_finding_states_its_numbers():
    claim = the_claim("matching_score", "folded above")
    tables = CASES["matching_score", "folded above"]
    assert [claim.check(Tables.of(case)).seen for case in tables] == [
        "4 of 5 pairs",
        "3 of 5 pairs",
    ]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says)
def test_without_numbers_the_rule_is_undecided(claim):
    """Missing rows and empty metrics do not count as zeros."""
    nothing = {
        name: []
        for name in ("matches", "layers", "strategies", "contrasts", "paths", "planted",
                     "feature_mse_histogram", "judge_scores", "judge_agreement", "mse_by_label")
    }  # fmt: skip
    for tables in ({}, nothing):
        finding = claim.check(Tables.of(tables))
        assert finding.agrees is None
        assert finding.seen.startswith("undecided: ")


def test_without_intervals_the_rule_is_undecided():
    rows = [row | {"matching_score_low": None} for row in scores(folded=[0.5], identity=[0.1])]
    finding = the_claim("matching_score", "the match is above").check(Tables.of({"matches": rows}))
    assert finding.seen == "undecided: no matching_score_low"


def test_the_median_lies_within_its_bin():
    """Of 91 errors, 50 lie between 0 and 1: evenly spread, the middle one is at 45.5 / 50."""
    tables = Tables.of(histogram([50, 30, 5, 3, 2, 1], [0, 0, 5, 50, 5, 0]))
    finding = the_claim("feature_mse", "most matched features").check(tables)
    assert finding.seen == "median 0.91, mean 1.18, identity's median 3.5"

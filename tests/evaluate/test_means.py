"""Means over pairs, their intervals, and the flat metrics by which sweeps compare runs."""

import pytest
import torch

from saematch.core.pairs import Pair
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.means import Means, headline_metrics, mean_rows

ONE, TWO = Pair.of_layers(0, 1), Pair.of_layers(1, 2)


def of(rows, **about):
    (row,) = [r for r in rows if all(r[name] == value for name, value in about.items())]
    return row


def test_the_interval_of_a_mean_is_that_of_the_mean_of_replicates():
    replicates = Intervals().replicates([4])
    means = Means(replicates)
    about = ("folded", "all", None, None, "matching_score")
    one = torch.tensor([0.2, 0.0, 0.2, 0.2, 0.4], dtype=torch.float64)
    two = torch.tensor([0.4, 0.6, 0.4, 0.4, 0.4], dtype=torch.float64)
    means.add(ONE, *about, one)
    means.add(TWO, *about, two)
    (row,) = means.rows()
    assert row["value"] == pytest.approx(0.3)
    assert row["n_pairs"] == 2
    half = (3 / 4 * torch.tensor([0, 0, 0, 0.1]).double().var(correction=0) * 4).sqrt().item()
    expected = [0.3 - 3.182446 * half, 0.3 + 3.182446 * half]  # Student's t, 3 degrees of freedom
    assert [row["low"], row["high"]] == pytest.approx(expected, rel=1e-5)


def test_over_all_data_sets_stands_the_mean_of_theirs():
    means = Means(Intervals().replicates([2, 2]))
    # replicates 1 and 2 leave out a text of prose, 3 and 4 a text of code
    for dataset, values in (("prose", [0.5, 0.4, 0.6, 0.5, 0.5]), ("code", [0.1] * 5)):
        about = (ONE, "folded", dataset, "permute", 0.5, "explained_variance")
        means.add(*about, torch.tensor(values, dtype=torch.float64))
    rows = means.rows()
    assert len(rows) == 3
    row = of(rows, dataset="all")
    assert (row["strategy"], row["quantile"], row["n_pairs"]) == ("permute", 0.5, 1)
    half = 12.706205 * 0.05  # one degree of freedom; standard error .1 in prose, halved by the mean
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.3, 0.3 - half, 0.3 + half])


def match(pair, arm, **metrics):
    return {**pair.columns(), "arm": arm, "gap": None, **metrics}


def score(pair, role, arm, value):
    return {"source_suite": "default", "source_layer": pair and 0,
            "target_suite": "default", "target_layer": pair and 1, "role": role,
            "arm": arm, "judge_score": value, "judge_score_low": 1.0, "judge_score_high": 3.0,
            "same_share": 0.5, "same_share_low": 0.0, "same_share_high": 1.0}  # fmt: skip


def test_metrics_of_weights_and_of_a_judge():
    tables = {
        "matches": [match(ONE, "folded", mse_W_dec=1.0), match(TWO, "folded", mse_W_dec=4.0)],
        "judge_scores": [
            score(ONE, "pair", "folded", 2.5),
            score(None, "pair", "folded", 2.0),
            score(ONE, "random", "none", 1.0),
            score(None, "random", "none", 1.5),
        ],
    }
    rows = mean_rows(tables, None)
    error = of(rows, metric="mse_W_dec")
    assert (error["value"], error["low"], error["n_pairs"]) == (2.5, None, 2)
    assert not [row for row in rows if row["metric"] == "gap"], "nobody has proven a bound"
    judged = of(rows, metric="judge_score", arm="folded")
    assert (judged["value"], judged["low"], judged["high"]) == (2.0, 1.0, 3.0)
    assert (judged["strategy"], judged["n_pairs"]) == (None, 1)
    assert of(rows, metric="judge_score", arm="none")["strategy"] == "random"


def test_a_judges_scores_are_over_all_judgements():
    tables = {"matches": [], "judge_scores": [score(None, "pair", "folded", 2.0),
                                              score(None, "random", "none", 1.5)]}  # fmt: skip
    assert headline_metrics({"means": mean_rows(tables, None)}) == {
        "judge_score/folded": 2.0,
        "same_share/folded": 0.5,
        "judge_control/random": 1.5,
    }


def row(arm, strategy, quantile, value, dataset="all", metric="explained_variance"):
    return {"suites": "default", "arm": arm, "dataset": dataset, "strategy": strategy,
            "quantile": quantile, "metric": metric, "value": value}  # fmt: skip


def test_an_arm_is_compared_by_its_first_strategy_and_its_only_partial_match():
    means = [
        row("whole", "permute", None, 0.1),
        row("whole", "permute_raw", None, 0.9),
        row("whole", "permute", None, 0.8, dataset="prose"),
        row("part", "permute", None, 0.2),
        row("part", "permute", 0.5, 0.3),
        row("curve", "permute", None, 0.4),
        row("curve", "permute", 0.1, 0.5),
        row("curve", "permute", 0.7, 0.6),
        row("none", "drop", None, 0.7),
    ]
    assert headline_metrics({"means": means}) == {
        "explained_variance/whole": 0.1,
        "explained_variance/part": 0.3,
        "explained_variance/curve": 0.4,
    }
    assert headline_metrics({}) == {}

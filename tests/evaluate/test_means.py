"""Means over pairs, their intervals, and the flat metrics by which sweeps compare runs."""

import pytest
import torch

from saematch.core.columns import Column
from saematch.core.pairs import Pair
from saematch.core.tables import Tables
from saematch.evaluate.co_activation import SCORES
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.match_tables import MatchTables
from saematch.evaluate.means import headline_metrics, weight_means
from saematch.evaluate.measures import Cell, Measures
from saematch.evaluate.skipping import EXPLAINED_VARIANCE, LOSS
from saematch.judge.means import judge_means, judge_metrics

FIRST, SECOND = Pair.of_layers(0, 1), Pair.of_layers(1, 2)
MATCHING_SCORE = SCORES[0]


def measures_of(**sizes):
    """Return the measures of text sets of these numbers of texts."""
    replicates = Intervals().replicates(list(sizes.values()))
    return Measures(replicates, dict(zip(sizes, replicates.weights, strict=True)))


def only_row(rows, **values):
    (row,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


def test_the_interval_of_a_mean_is_that_of_the_mean_of_replicates():
    measures = measures_of(t=4)
    for pair, values in (
        (FIRST, [0.2, 0.0, 0.2, 0.2, 0.4]),
        (SECOND, [0.4, 0.6, 0.4, 0.4, 0.4]),
    ):
        cell = Cell(pair, "folded", "all")
        measures.row(cell, {MATCHING_SCORE: torch.tensor(values, dtype=torch.float64)})
    (row,) = measures.mean_rows()
    assert row["value"] == pytest.approx(0.3)
    assert (row["metric"], row["suites"], row["n_pairs"]) == ("matching_score", "default", 2)
    half = (3 / 4 * torch.tensor([0, 0, 0, 0.1]).double().var(correction=0) * 4).sqrt().item()
    expected = [0.3 - 3.182446 * half, 0.3 + 3.182446 * half]  # Student's t, 3 degrees of freedom
    assert [row["low"], row["high"]] == pytest.approx(expected, rel=1e-5)


def test_the_value_over_all_data_sets_is_their_mean():
    measures = measures_of(prose=2, code=2)
    # replicates 1 and 2 leave out a text of prose, 3 and 4 a text of code
    for dataset, values in (("prose", [0.5, 0.4, 0.6, 0.5, 0.5]), ("code", [0.1] * 5)):
        cell = Cell(FIRST, "folded", dataset, "permute", 0.5)
        measures.row(cell, {EXPLAINED_VARIANCE: torch.tensor(values, dtype=torch.float64)})
    rows = measures.mean_rows()
    assert len(rows) == 3
    row = only_row(rows, dataset="all")
    assert (row["strategy"], row["quantile"], row["n_pairs"]) == ("permute", 0.5, 1)
    half = 12.706205 * 0.05  # one degree of freedom; standard error .1 in prose, halved by the mean
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.3, 0.3 - half, 0.3 + half])


def test_metrics_that_no_comparison_reads_have_no_mean():
    measures = measures_of(t=2)
    row = measures.row(Cell(FIRST, "folded", "t", "permute"), {LOSS: torch.ones(3).double()})
    assert (row["loss"], row["strategy"], row["quantile"]) == (1.0, "permute", None)
    assert measures.mean_rows() == []


def match(pair, arm, **metrics):
    return {**pair.columns(), "arm": arm, "gap": None, **metrics}


def score(pair, role, arm, value):
    return {"source_suite": "default", "source_layer": pair and 0,
            "target_suite": "default", "target_layer": pair and 1, "role": role,
            "arm": arm, "judge_score": value, "judge_score_low": 1.0, "judge_score_high": 3.0,
            "same_share": 0.5, "same_share_low": 0.0, "same_share_high": 1.0}  # fmt: skip


def test_metrics_of_weights_and_of_a_judge():
    errors = [match(FIRST, "folded", mse_W_dec=1.0), match(SECOND, "folded", mse_W_dec=4.0)]
    rows = weight_means(Tables.of({"matches": errors}, MatchTables.columns))
    error = only_row(rows, metric="mse_W_dec")
    assert (error["value"], error["low"], error["n_pairs"]) == (2.5, None, 2)
    assert not [row for row in rows if row["metric"] == "gap"], "nobody has proven a bound"
    scores = [
        score(FIRST, "pair", "folded", 2.5),
        score(None, "pair", "folded", 2.0),
        score(FIRST, "random", "none", 1.0),
        score(None, "random", "none", 1.5),
    ]
    rows = judge_means(Tables.of({"judge_scores": scores}))
    judged = only_row(rows, metric="judge_score", arm="folded")
    assert (judged["value"], judged["low"], judged["high"]) == (2.0, 1.0, 3.0)
    assert (judged["strategy"], judged["n_pairs"]) == (None, 1)
    assert only_row(rows, metric="judge_score", arm="none")["strategy"] == "random"


def test_an_interval_that_no_text_set_gives_does_not_remove_the_mean():
    drift = Column("drift", "drift", interval=True, logged=("matches",))
    tables = Tables.of({"matches": [match(FIRST, "a", drift=n) for n in (1.0, 3.0)]}, [drift])
    row = only_row(weight_means(tables), metric="drift")
    assert (row["value"], row["low"], row["n_pairs"]) == (2.0, None, 2)
    assert weight_means(tables, {"drift"}) == []


def test_a_judges_scores_are_over_all_judgements():
    scores = [score(None, "pair", "folded", 2.0), score(None, "random", "none", 1.5)]
    tables = Tables.of({"means": judge_means(Tables.of({"judge_scores": scores}))})
    assert judge_metrics(tables) == {
        "judge_score/folded": 2.0,
        "same_share/folded": 0.5,
        "judge_control/random": 1.5,
    }
    assert headline_metrics(tables) == {}


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
    assert headline_metrics(Tables.of({"means": means})) == {
        "explained_variance/whole": 0.1,
        "explained_variance/part": 0.3,
        "explained_variance/curve": 0.4,
    }
    assert headline_metrics(Tables()) == {}

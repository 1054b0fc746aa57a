"""Intervals contain their estimate, and cover the expected value as often as stated."""

import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from populations import Population, metrics
from saematch.core.columns import EXPLAINED_VARIANCE, Column, share
from saematch.core.pairs import Pair
from saematch.core.results import Results
from saematch.evaluate.counts import JACCARD, MATCHING_SCORE
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.measures import Measures
from saematch.evaluate.metrics import mean
from saematch.evaluate.skipping import DELTA_LOSS, SkippedCell, strategy_contrasts
from saematch.evaluate.splice import Splice
from saematch.texts.tokens import TokenBatch

METRIC = Column("m", "m", interval=True)
"""A metric without bounds."""


def coverage(n, repeats, n_features, seed=1):
    """Share of text sets whose intervals contain the mean of the metric over such sets."""
    population, random = Population(n_features), np.random.default_rng(seed)
    replicates = Intervals().replicates([n])
    once = torch.ones(1, n, dtype=torch.float64)
    totals, hits = {}, {}
    for _ in range(4 * repeats):
        for column, values in metrics(once, population.draw(n, random)).items():
            totals[column] = totals.get(column, 0) + values.item()
    for _ in range(repeats):
        for column, values in metrics(replicates.weights[0], population.draw(n, random)).items():
            value, low, high = replicates.interval(column, values)
            assert low <= value <= high, column.name
            hit = low <= totals[column] / (4 * repeats) <= high
            hits[column] = hits.get(column, 0) + hit
    return {column.name: n_hits / repeats for column, n_hits in hits.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("n", "repeats"), [(30, 1000), (100, 500)])
def test_A13_coverage_is_within_three_points_of_nominal(n, repeats):
    for name, covered in coverage(n, repeats, n_features=400).items():
        assert abs(covered - 0.95) <= 0.03, f"{name}: {covered}"


def test_A13_coverage_of_few_simulated_text_sets_is_near_nominal():
    """120 sets: the standard error of a share is 2 points."""
    for name, covered in coverage(30, 120, n_features=40).items():
        assert abs(covered - 0.95) <= 0.05, f"{name}: {covered}"


@pytest.mark.parametrize("sizes", [[1], [2], [6], [1, 1], [1, 1, 1], [1, 5], [6, 6, 6]])
def test_A13_intervals_of_few_texts_contain_their_estimate(sizes):
    population, random = Population(40), np.random.default_rng(3)
    replicates = Intervals().replicates(sizes)
    for _ in range(20):
        sums = population.draw(sum(sizes), random)
        for column, values in metrics(replicates.pooled(), sums).items():
            value, low, high = replicates.interval(column, values)
            if max(sizes) == 1:
                assert (low, high) == (None, None), (
                    "one text tells nothing about other texts of its set"
                )
            else:
                assert low <= value <= high, column.name


@pytest.mark.parametrize("values", [[0.3] * 6, [1.0] * 6, [0.1 + 0.2] + [0.3] * 5])
def test_A13_constant_values_have_a_point(values):
    replicates = Intervals().replicates([5])
    value, low, high = replicates.interval(JACCARD, torch.tensor(values, dtype=torch.float64))
    assert low <= value <= high
    assert high - low < 1e-12


def test_A13_the_interval_of_a_mean_is_the_textbook_one():
    values = torch.randn(40, generator=torch.Generator().manual_seed(3)).double()
    replicates = Intervals(level=0.9).replicates([40])
    ones = torch.ones(40, dtype=torch.int64)
    row = replicates.row(METRIC, mean(replicates.weights[0], values, ones))
    half = student.ppf(0.95, 39) * values.std().item() / math.sqrt(40)
    expected = [values.mean().item() + end for end in (0, -half, half)]
    assert list(row.values()) == pytest.approx(expected, rel=1e-9)


def test_A13_the_interval_over_several_sets_is_that_of_a_stratified_sample():
    """Each set's texts vary by themselves; equal numbers of tokens make the mean a plain one."""
    sets = [torch.tensor([1.0, 2, 4]).double(), torch.tensor([10.0, 10, 13, 15, 11]).double()]
    replicates = Intervals().replicates([3, 5])
    pooled = mean(replicates.pooled(), torch.cat(sets), torch.ones(8, dtype=torch.int64))
    # the variance of a sum of independent parts, with the deletions computed one by one
    terms = torch.cat(sets).tolist()
    variances = []
    for first, of_set in ((0, sets[0]), (3, sets[1])):
        n = len(of_set)
        left = [terms[:i] + terms[i + 1 :] for i in range(first, first + n)]
        means = torch.tensor([sum(part) / len(part) for part in left]).double()
        variances.append((n - 1) / n * (means - means.mean()).square().sum().item())
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 4)
    half = student.ppf(0.975, freedom) * math.sqrt(sum(variances))
    value, low, high = replicates.interval(METRIC, pooled)
    assert [value, low, high] == pytest.approx([66 / 8, 66 / 8 - half, 66 / 8 + half], rel=1e-6)


def test_A13_texts_that_say_nothing_about_a_share_do_not_count():
    """A feature that fired in 3 of 100 texts has an interval from 3 texts, in one text none."""
    replicates = Intervals().replicates([100])
    hits, fired = torch.zeros(2, 100).double(), torch.zeros(2, 100).double()
    fired[0, [4, 50, 99]], hits[0, [4, 50, 99]] = 1, torch.tensor([1.0, 1, 0]).double()
    fired[1, 7], hits[1, 7] = 3, 2
    weights = replicates.weights[0]
    shares = [((weights @ h) / (weights @ f).clamp(min=1), weights @ f)
              for h, f in zip(hits, fired, strict=True)]  # fmt: skip
    value, low, high = replicates.interval(METRIC, *shares[0])
    half = student.ppf(0.975, 2) * math.sqrt(1 / 3 / 3)  # the variance of 1, 1, 0 is 1/3
    assert [value, low, high] == pytest.approx([2 / 3, 2 / 3 - half, 2 / 3 + half])
    assert replicates.interval(MATCHING_SCORE, *shares[0]).high == 1, "a share is at most 1"
    assert replicates.interval(share("x", "x", "a share"), *shares[0]).high == 1
    assert replicates.interval(METRIC, *shares[1]) == (pytest.approx(2 / 3), None, None)


def test_A13_many_texts_are_left_out_in_groups():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    replicates = Intervals(n_replicates=50).replicates([1000])
    (weights,) = replicates.weights
    assert weights.shape == (51, 1000)
    assert (weights[1:].sum(dim=1) == 980).all()
    assert (weights[1:].sum(dim=0) == 49).all()
    row = replicates.row(METRIC, mean(weights, values, torch.ones(1000, dtype=torch.int64)))
    half = 1.96 * values.std().item() / math.sqrt(1000)
    assert row["m_high"] - row["m"] == pytest.approx(half, rel=0.2)


def test_A13_no_replicates_leave_the_interval_out():
    none = Intervals(n_replicates=0).replicates([3])
    row = none.row(METRIC, none.weights[0] @ torch.ones(3).double())
    assert row == {"m": 3.0, "m_low": None, "m_high": None}
    for bad in ({"n_replicates": -1}, {"level": 1.0}):
        with pytest.raises(ValueError, match=r"intervals\.n_replicates"):
            Intervals(**bad)


def test_A14_contrasts_with_copying_the_hidden_state_are_paired():
    """An arm against ``drop``: by plain loops, leaving out one text after another."""
    random = np.random.default_rng(0)
    n = 8
    counts = random.integers(5, 60, n)
    difficulty = random.lognormal(0, 1, n)  # shared by both cells, so the difference varies less
    losses = {"permute": counts * difficulty, "drop": counts * (difficulty - random.random(n))}
    replicates = Intervals().replicates([n])
    pair = Pair.of_layers(0, 1)
    cells = [SkippedCell(arm, Splice(strategy, pair), Splice(strategy, pair))
             for arm, strategy in (("folded", "permute"), ("none", "drop"))]  # fmt: skip
    values = []
    for cell in cells:
        loss = torch.from_numpy(losses[cell.splice.strategy])
        of_cell = mean(replicates.weights[0], loss, torch.from_numpy(counts))
        values.append({DELTA_LOSS: of_cell, EXPLAINED_VARIANCE: of_cell})
    (row,) = strategy_contrasts(cells, values, "t", replicates)
    named = [row[name] for name in ("arm", "strategy", "against_arm", "against_strategy")]
    assert named == ["folded", "permute", "none", "drop"]

    def difference(texts):
        means = {name: sum(loss[i] for i in texts) / sum(counts[i] for i in texts)
                 for name, loss in losses.items()}  # fmt: skip
        return means["permute"] - means["drop"]

    left = [difference([i for i in range(n) if i != out]) for out in range(n)]
    variance = (n - 1) / n * sum((value - sum(left) / n) ** 2 for value in left)
    half = student.ppf(0.975, n - 1) * math.sqrt(variance)
    value = difference(range(n))
    interval = [row[f"delta_loss_difference{end}"] for end in ("", "_low", "_high")]
    assert interval == pytest.approx([value, value - half, value + half], rel=1e-9)
    alone = replicates.interval(DELTA_LOSS, values[0][DELTA_LOSS])
    assert half < 0.8 * (alone.high - alone.value), "narrower than the arm's own interval"


@pytest.mark.parametrize(
    ("n_texts", "settings", "n_warnings"),
    [(29, {}, 1), (30, {}, 0), (29, {"n_replicates": 0}, 0)],
)
def test_A13_fewer_than_30_texts_give_one_warning(caplog, n_texts, settings, n_warnings):
    ids = torch.zeros(n_texts, 3, dtype=torch.int64)
    batch = TokenBatch(ids, ids > 0, torch.full((n_texts,), 3))
    with caplog.at_level(logging.WARNING):
        measures = Measures.of({"a": [batch]}, Intervals(**settings))
    assert measures.datasets == ["a"]
    assert caplog.text.count("fewer than 30 texts are often too narrow: a has 29") == n_warnings


def test_A13_every_interval_of_a_run_contains_its_estimate(cli, tmp_path):
    message, output = cli(
        "evaluations=[co_activation,skipping,paths]", "judge=overlap",
        "arms=[folded,random,as_trained]",
        "evaluations.skipping.strategies=[drop,reconstruct_current,reconstruct_previous]",
        "logger=none", "run_id=a",
    )  # fmt: skip
    assert message is None
    assert (output.out + output.err).count("fewer than 30 texts") == 1
    tables = Results.load(tmp_path / "outputs/match/a/results.json").tables
    n_intervals = 0
    for table in tables:
        for row in tables.rows(table):
            for name in row:
                value = row[name.removesuffix("_low")] if name.endswith("_low") else None
                low, high = row.get(name), row.get(name.replace("_low", "_high"))
                if value is not None and low is not None and not name.startswith("mse"):
                    assert low <= value <= high, f"{table}: {row}"
                    n_intervals += 1
    for row in tables.rows("means"):
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"], row
    assert n_intervals > 500
    check_contrasts(tables)


def check_contrasts(tables):
    """Each difference is that of the two estimates."""
    keys = ("source_layer", "dataset", "arm", "strategy", "quantile")
    cells = {tuple(row[key] for key in keys): row for row in tables.rows("strategies")}
    for row in tables.rows("contrasts"):
        cell = cells[tuple(row[key] for key in keys)]
        pair = (row["source_layer"], row["dataset"])
        other = cells[*pair, row["against_arm"], row["against_strategy"], None]
        for metric in ("explained_variance", "delta_loss"):
            expected = cell[metric] - other[metric]
            assert row[f"{metric}_difference"] == pytest.approx(expected, abs=1e-12)
    against = {(row["arm"], row["against_strategy"]) for row in tables.rows("contrasts")
               if row["against_arm"] == "none"}  # fmt: skip
    matchless = ("drop", "reconstruct_current", "reconstruct_previous")
    assert against == {(a, s) for a in ("folded", "random", "as_trained") for s in matchless}
    keys = ("source_layer", "dataset", "arm")
    scores = {tuple(row[key] for key in keys): row for row in tables.rows("activations")}
    assert len(tables.rows("activation_contrasts")) == len(scores)  # three arms make three pairs
    for row in tables.rows("activation_contrasts"):
        score = scores[tuple(row[key] for key in keys)]
        other = scores[row["source_layer"], row["dataset"], row["against_arm"]]
        for metric in ("matching_score", "matching_score_macro", "jaccard"):
            expected = score[metric] - other[metric]
            assert row[f"{metric}_difference"] == pytest.approx(expected, abs=1e-12)

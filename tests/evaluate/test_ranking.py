"""Ranks from paired differences, against one interval at a time."""

import math

import pytest
import torch

from saematch.core.columns import Column
from saematch.core.pairs import Pair
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.ranking import rank

SCORE = Column("score", "score", "higher", interval=True)
LOSS = Column("loss", "loss", "lower", interval=True)
EXACT = Column("recall", "recall", "higher")
PAIRS = [Pair.of_layers(n, n + 1) for n in range(3)]
REPLICATES = Intervals().replicates([7, 5])


def means(n_texts, shifts, seed=0, noise=0.3):
    """Return the jackknife of the mean of one random value a text, by pair."""
    g = torch.Generator().manual_seed(seed)
    weights = REPLICATES.pooled()
    return {
        pair: weights @ (shift + noise * torch.randn(n_texts, generator=g).double())
        / weights.sum(dim=1)
        for pair, shift in zip(PAIRS, shifts, strict=False)
    }  # fmt: skip


def by_arm():
    shared = means(12, (0, 1, 2))
    nearly = {
        pair: values + 0.01 * means(12, (0, 0, 0), 1)[pair] for pair, values in shared.items()
    }
    return {
        "a": shared,
        "nearly a": nearly,
        "noisy": means(12, (0, 1, 2), 2, noise=3),
        "better": {pair: values + 0.5 for pair, values in shared.items()},
        "one pair": {PAIRS[1]: shared[PAIRS[1]] - 0.2},
    }


def mean_over(values, pairs):
    return torch.stack([values[pair] for pair in pairs]).mean(dim=0)


@pytest.mark.parametrize("column", [SCORE, LOSS])
def test_ranks_count_the_arms_that_are_better_by_their_paired_interval(column):
    arms = by_arm()
    ranked = {row.arm: row for row in rank(column, arms, REPLICATES)}
    for name, values in arms.items():
        n_better = 0
        for of_other in arms.values():
            shared = [pair for pair in PAIRS if pair in values and pair in of_other]
            difference = mean_over(of_other, shared) - mean_over(values, shared)
            interval = REPLICATES.interval(column.difference, difference)
            n_better += interval.low > 0 if column is SCORE else interval.high < 0
        row = ranked[name]
        assert row.rank == 1 + n_better
        assert row.mean == pytest.approx(
            tuple(REPLICATES.interval(column, mean_over(values, list(values))))
        )
        shared = [pair for pair in PAIRS if pair in values]
        against_a = mean_over(values, shared) - mean_over(arms["a"], shared)
        assert row.difference == pytest.approx(
            tuple(REPLICATES.interval(column.difference, against_a)), abs=1e-12
        )
        assert (row.against, row.n_pairs) == ("a", len(values))


def test_an_arm_far_above_wins_and_overlapping_arms_tie():
    ranked = {row.arm: row.rank for row in rank(SCORE, by_arm(), REPLICATES)}
    assert ranked["better"] == 1
    assert ranked["a"] > 1
    assert ranked["one pair"] > ranked["a"]
    ties = rank(SCORE, {name: by_arm()[name] for name in ("a", "noisy")}, REPLICATES)
    assert [row.rank for row in ties] == [1, 1]


def test_equal_matches_tie_although_their_values_are_uncertain():
    shared = means(12, (0, 1, 2))
    assert [row.rank for row in rank(SCORE, {"a": shared, "b": shared}, REPLICATES)] == [1, 1]


def test_exact_values_rank_by_any_difference():
    values = {"a": 0.5, "b": 0.75, "c": 0.75, "d": 0.25}
    arms = {name: {PAIRS[0]: torch.tensor([v]).double()} for name, v in values.items()}
    ranked = rank(EXACT, arms, None)
    assert [row.rank for row in ranked] == [3, 1, 1, 4]
    assert ranked[1].mean == (0.75, None, None)
    assert ranked[1].difference == (0.25, None, None)


def test_without_intervals_there_are_no_ranks():
    replicates = Intervals(n_replicates=0).replicates([4])
    arms = {name: {PAIRS[0]: torch.tensor([v]).double()} for name, v in (("a", 0.1), ("b", 0.9))}
    assert [row.rank for row in rank(SCORE, arms, replicates)] == [None, None]


def test_a_pair_without_a_value_does_not_count():
    arms = by_arm()
    missing = torch.full_like(arms["a"][PAIRS[0]], math.nan)
    arms["a"] = {**arms["a"], PAIRS[0]: missing}
    row = rank(SCORE, arms, REPLICATES)[0]
    assert row.n_pairs == 2
    expected = REPLICATES.interval(SCORE, mean_over(arms["a"], PAIRS[1:]))
    assert row.mean == pytest.approx(tuple(expected))


def test_an_arm_without_a_value_has_no_rank():
    arms = by_arm()
    missing = torch.full_like(arms["a"][PAIRS[0]], math.nan)
    arms["empty"] = {PAIRS[0]: missing}
    *others, empty = rank(SCORE, arms, REPLICATES)
    assert (empty.rank, empty.mean.value, empty.n_pairs) == (None, None, 0)
    assert [row.rank for row in others] == [row.rank for row in rank(SCORE, by_arm(), REPLICATES)]

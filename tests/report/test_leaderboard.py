"""Sentences on the leaderboards of several runs."""

import pytest

from saematch.core.columns import Column
from saematch.core.tables import Tables
from saematch.report.leaderboard import (
    OFF_RATE,
    USES,
    against_first,
    best_everywhere,
    pair_difference,
    recommendation,
)

NAME_ONE = USES[0]


def row(arm, value, rank, difference, **key):
    low, high = difference - 0.02, difference + 0.02
    return {
        "suites": "default", "by": "all", "part": "all", "metric": OFF_RATE, "strategy": None,
        "k": 1, "partners": None, "arm": arm, "value": value, "low": value - 0.01,
        "high": value + 0.01, "rank": rank, "difference": difference, "difference_low": low,
        "difference_high": high, "against": "cosine", "n_pairs": 7, **key,
    }  # fmt: skip


def tables(rows):
    arms = [{"arm": "cosine", "reads": "weights", "seconds": 2.0},
            {"arm": "folded", "reads": "weights", "seconds": 9.0},
            {"arm": "pearson", "reads": "weights, texts", "seconds": 1.0}]  # fmt: skip
    column = Column(OFF_RATE, "off rate over random", "higher")
    return Tables.of({"leaderboard": rows, "leaderboard_arms": arms}, [column])


@pytest.fixture
def tied():
    """Pearson has the largest value, and cosine ties."""
    return tables([row("cosine", 0.5, 1, 0.0), row("folded", 0.3, 3, -0.2),
                   row("pearson", 0.51, 1, 0.01)])  # fmt: skip


@pytest.fixture
def won():
    """Pearson is better than cosine."""
    return tables([row("cosine", 0.5, 2, 0.0), row("folded", 0.3, 3, -0.2),
                   row("pearson", 0.6, 1, 0.1)])  # fmt: skip


def test_a_recommendation_names_ties_and_the_cheapest_of_them(tied, won):
    assert recommendation(NAME_ONE, "chain", tied) == (
        "`chain`: `pearson` (off rate over random 0.510 [0.500, 0.520], best of 3 arms), tied with "
        "`cosine`. The cheapest of these, `cosine`, reads weights."
    )
    assert recommendation(NAME_ONE, "chain", won).endswith("; it reads weights, texts.")
    assert recommendation(NAME_ONE, "chain", tables([row("cosine", 0.5, None, 0.0)])) is None


def test_the_best_arm_on_every_family_may_be_tied(tied, won):
    shared = best_everywhere(NAME_ONE, {"a": tied, "b": won})
    assert shared == "Best, or tied for best, on every family: `pearson`."
    other = tables([row("cosine", 0.6, 2, 0.0), row("folded", 0.9, 1, 0.3)])
    assert best_everywhere(NAME_ONE, {"a": won, "b": other}).startswith("No arm is best")


def test_only_an_interval_above_0_is_called_better(tied, won):
    assert against_first("mixed", tied, 1) == (
        "On `mixed`, no arm is better than `cosine` at one partner by its paired interval."
    )
    assert against_first("mixed", won, 1) == (
        "On `mixed`, these arms are better than `cosine` at one partner: `pearson` by 0.100 "
        "[0.080, 0.120]."
    )
    assert against_first("mixed", tables([row("cosine", 0.5, 1, 0.0)]), 1) is None


def test_the_difference_on_one_pair_is_stated_either_way():
    def stated(difference):
        of_pair = {"by": "pair", "part": "4→5", "k": 5}
        pearson = row("pearson", 0.6, 1, difference, **of_pair)
        both = tables([row("cosine", 0.5, 1, 0.0, **of_pair), pearson])
        return pair_difference(both, "independent", "4→5", "pearson", 5)

    assert "top-5 of `pearson` beats top-5 of `cosine`" in stated(0.1)
    assert "top-5 of `pearson` does not beat top-5 of `cosine`" in stated(0.01)
    without_pairs = tables([row("cosine", 0.5, 1, 0.0)])
    assert pair_difference(without_pairs, "mixed", "4→5", "cosine", 5) is None

"""Intervals of ``verify`` cover the truth; its statistics agree with computations by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm, spearmanr, t

from evaluations import subject_of
from saematch.core.pairs import Pair
from saematch.evaluate.effects import (
    N_DECILES,
    NONE,
    Effects,
    deciles,
    mean_of,
    quantile_groups,
    random_partners,
)
from saematch.evaluate.events import Events, Sample
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.verify_columns import OFF_RATE
from saematch.evaluate.verify_features import FeatureTables, judge_correlations, spearman
from saematch.evaluate.verify_tables import PairTables, Verified
from saematch.matching.matches import MatchSet
from saematch.sae.recorders import Recording

LEVEL = 0.95


def events_of_texts(random, n_texts=40):
    """Return two arms' off rates on the same events, which share an effect of their text."""
    counts = 1 + random.poisson(6, n_texts)
    texts = np.repeat(np.arange(n_texts), counts)
    shared = random.beta(2, 4, n_texts)[texts]
    first = random.random(len(texts)) < shared
    second = random.random(len(texts)) < 0.5 * shared
    return texts, first.astype(float), second.astype(float)


def test_intervals_of_off_rates_and_of_differences_cover_the_truth():
    random = np.random.default_rng(0)
    replicates = Intervals(LEVEL).replicates([40])
    weights, difference = replicates.pooled(), OFF_RATE.difference
    truth = {OFF_RATE: 1 / 3, difference: 1 / 6}
    covered = dict.fromkeys(truth, 0)
    n = 400
    for _ in range(n):
        texts, first, second = events_of_texts(random)
        for column, values in ((OFF_RATE, first), (difference, first - second)):
            interval = replicates.interval(column, mean_of(values, texts, weights))
            assert interval.low < interval.value < interval.high
            covered[column] += interval.low <= truth[column] <= interval.high
    for column, count in covered.items():
        assert 0.92 <= count / n <= 0.98, column.name


def test_the_mean_over_events_by_hand():
    weights = Intervals(LEVEL).replicates([3]).pooled()
    texts, values = np.array([0, 0, 1, 2]), np.array([1.0, 0.0, 1.0, 0.0])
    assert mean_of(values, texts, weights).tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 2 / 3])
    where = np.array([True, False, True, False])
    assert mean_of(values, texts, weights, where).tolist() == [1.0, 1.0, 1.0, 1.0]
    alone = mean_of(values, texts, weights, texts == 1)
    assert alone[[0, 1, 3]].tolist() == [1.0, 1.0, 1.0]
    assert alone[2].isnan(), "without the only text there is no event"


def effects_by_hand(features, texts, entries, n_target):
    """Return effects; ``entries`` has for each event the effect on the targets that were active."""
    counts = [len(of_event) for of_event in entries]
    targets = [target for of_event in entries for target in of_event]
    D = np.array([effect for of_event in entries for effect in of_event.values()])
    columns = {
        "feature": np.array(features),
        "text": np.array(texts),
        "by_feature": np.ones(len(features), bool),
    }
    before = np.full(len(D), 2.0)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Effects(
        columns, starts, np.array(targets), before, before * (1 - D), -2 * D, n_target
    )  # fmt: skip


def feature_tables(effects, n_texts, groups=None, arms=None):
    """Return the tables of three source features with given effects of removing them."""
    empty = torch.zeros(0, dtype=torch.int64)
    events = Events(empty, empty, empty, empty.float(), empty.bool(), empty.bool())
    sample = Sample(events, empty, empty.double(), 0)
    pair, tested = Pair.of_layers(0, 1), torch.ones(3, dtype=torch.bool)
    verified = Verified(pair, pair, Recording({}), sample, sample, tested, None)
    vars(verified)["groups"] = groups
    subject, replicates = subject_of({}, MatchSet((), {})), Intervals(LEVEL).replicates([n_texts])
    tables = PairTables(subject, verified, replicates, (1,), 0, 1)
    vars(tables).update(removed=effects, arms=arms or {})
    return FeatureTables(tables)


def test_the_interval_of_a_feature_by_hand():
    entries = [{0: 1.0}, {0: 0.5, 1: 1.0}, {1: 1.0}, {0: 0.2}, {0: 1.0}]
    effects = effects_by_hand([0, 0, 0, 0, 1], [0, 0, 1, 2, 1], entries, 2)
    means = feature_tables(effects, 4).means(np.array([0, 0, NONE]))
    assert means.n_events.tolist() == [4, 1, 0]
    assert means.n_active.tolist() == [3, 1, 0]
    assert means.off_rate[:2].tolist() == [1 / 4, 1.0]
    mean = (1 + 0.5 + 0 + 0.2) / 4
    assert means.effect[:2].tolist() == pytest.approx([mean, 1.0])
    assert np.isnan([means.effect[2], means.off_rate[2]]).all()
    deviations = np.array([1.5 - 2 * mean, 0 - mean, 0.2 - mean])
    error = np.sqrt((deviations**2).sum() * 3 / 2) / 4
    half = t.ppf(0.975, 2) * error
    assert means.low[0] == pytest.approx(max(mean - half, -1))
    assert means.high[0] == pytest.approx(min(mean + half, 1))
    assert np.isnan(means.low[1:]).all(), "events in one text have no interval"


def test_a_feature_without_a_partner_has_no_effect():
    effects = effects_by_hand([0, 0], [0, 1], [{0: 1.0}, {0: 1.0}], 2)
    means = feature_tables(effects, 2).means(np.array([NONE, 1, 1]))
    assert (means.effect[0], means.low[0], means.high[0]) == (0.0, 0.0, 0.0)


def test_the_floor_is_the_95th_percentile_of_the_other_targets_of_the_decile():
    entries = [{0: 1.0, 1: 0.6, 3: 0.8}, {0: 1.0, 2: -0.4, 3: 0.8}]
    effects = effects_by_hand([0, 0], [0, 1], entries, 5)
    tables = feature_tables(effects, 2, groups=np.array([0, 0, 0, 1, 0]))
    others = [0.3, -0.2, 0.0]  # means of the targets 1, 2 and 4
    assert tables.floor(0, 0) == pytest.approx(np.quantile(others, 0.95))
    assert tables.floor(0, 3) == 0.0, "the partner is alone in its decile"
    assert tables.floor(1, 0) == 0.0, "a feature without events"


def verdict(texts, of_partner=(1.0,), of_other=0.0, partner=0):
    """Return the finding for a feature with given effects on its partner and another target."""
    entries = [{0: of_partner[n % len(of_partner)], 1: of_other} for n in range(len(texts))]
    effects = effects_by_hand([0] * len(texts), texts, entries, 2)
    arms = {"a": np.full((3, 1), partner)}
    tables = feature_tables(effects, 20, np.array([0, 0]), arms)
    return tables.frame()["finding"].tolist()[0]


def test_a_verdict_needs_8_events_in_2_texts():
    assert verdict(range(8)) == "passes"
    assert verdict(range(7)) == "too few events"
    assert verdict([0] * 8) == "too few events"
    assert verdict(range(8), partner=NONE) == "no partner"


def test_the_correlation_with_a_judge_has_the_interval_of_the_run():
    pair, random = Pair.of_layers(0, 1), np.random.default_rng(0)
    effects = pd.DataFrame({"arm": "a", "feature": range(12), "partner": range(12)})
    effects["effect"] = random.random(12)
    judged = effects.rename(columns={"feature": "source_feature", "partner": "target_feature"})
    judged = judged.assign(role="pair", judge_score=random.random(12), **pair.columns())
    wide, narrow = (next(judge_correlations(pair, effects, judged, p)) for p in (0.95, 0.5))
    expected = spearmanr(effects["effect"], judged["judge_score"]).statistic
    assert wide["spearman"] == narrow["spearman"] == pytest.approx(expected)
    error = np.sqrt((1 + expected**2 / 2) / 9)  # Bonett and Wright (2000)
    for row, p in ((wide, 0.975), (narrow, 0.75)):
        low = np.tanh(np.arctanh(expected) - norm.ppf(p) * error)
        assert row["spearman_low"] == pytest.approx(low)


def test_a_feature_passes_if_the_lower_bound_exceeds_the_floor():
    assert verdict(range(8), (0.5, 0.7), 0.4) == "passes"
    assert verdict(range(8), (0.5, 0.7), 0.6) == "fails"
    assert verdict(range(8), (1.0, 0.2), 0.4) == "fails", "the mean is 0.6, its lower bound 0.24"


def test_spearman_is_that_of_scipy():
    random = np.random.default_rng(0)
    effects, measure = random.integers(0, 6, (4, 30)) / 5, random.integers(0, 9, 30) / 8
    effects[2, 7] = np.nan
    filled = effects.copy()
    filled[2, 7] = effects[0, 7]
    expected = [spearmanr(row, measure).statistic for row in filled]
    assert spearman(effects, measure).tolist() == pytest.approx(expected)
    assert spearman(np.ones((1, 30)), measure).isnan().all()


def test_the_effect_of_each_feature_without_a_text():
    entries = [{0: 1.0}, {0: 0.5}, {1: 1.0}, {1: 0.25}]
    effects = effects_by_hand([0, 0, 1, 2], [0, 1, 1, 2], entries, 2)
    by_replicate = feature_tables(effects, 3).effects_by_replicate(np.array([0, 1, 1]))
    expected = [[0.75, 1.0, 0.25], [0.5, 1.0, 0.25], [1.0, np.nan, 0.25], [0.75, 1.0, np.nan]]
    np.testing.assert_allclose(by_replicate, expected)


def test_deciles_and_strata_are_groups_of_equal_size_by_rank():
    activity = np.array([5, 0, 1, 9, 3, 0, 7, 2])
    assert quantile_groups(activity, 4).tolist() == [2, 0, 1, 3, 2, 0, 3, 1]
    assert quantile_groups(np.arange(25), 10).tolist() == [
        0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 8, 9, 9,
    ]  # fmt: skip
    live = activity > 0
    groups = deciles(activity, live)
    assert (groups[~live] == N_DECILES).all()
    assert groups[live].tolist() == [5, 0, 8, 3, 6, 1], "10 r / 6 of the rank r"
    assert len(quantile_groups(activity[:0], 4)) == 0


def test_random_partners_are_distinct_targets_of_the_same_groups():
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [6, 10, 4])
    partners = np.stack([random.permutation(20)[:4] for _ in range(300)])
    partners[:50, 2:] = NONE
    chosen = random_partners(partners, groups, 0)
    np.testing.assert_array_equal(chosen == NONE, partners == NONE)
    has_partner = partners != NONE
    np.testing.assert_array_equal(groups[chosen][has_partner], groups[partners][has_partner])
    for of_event, of_random in zip(partners, chosen, strict=True):
        assert len(set(of_random[of_event != NONE])) == (of_event != NONE).sum()
    counts = np.bincount(chosen[has_partner], minlength=20)
    for group in range(3):
        of_group = counts[groups == group]
        assert of_group.min() > 0.6 * of_group.mean(), "every target is as likely"
    assert not np.array_equal(chosen, random_partners(partners, groups, 1))
    np.testing.assert_array_equal(chosen, random_partners(partners, groups, 0))

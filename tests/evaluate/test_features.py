"""Errors of single features, and paths."""

import pytest
import torch

from conftest import random_sae
from evaluations import subject_of
from matches import partners
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.features import N_BINS, N_EXAMPLES, example_rows, histogram_rows
from saematch.evaluate.paths import Paths
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.matching.matches import MatchSet
from saematch.sae.suites import SaeShelf

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 2))
SAES = {SaeKey("default", layer): random_sae(layer, layer=layer) for layer in range(3)}


def permutation(seed):
    columns = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    return Match.from_columns(columns, 24)


def a_match_set(**arms):
    by_arm = {arm: dict(zip(PAIRS, of_arm, strict=True)) for arm, of_arm in arms.items()}
    return MatchSet(PAIRS, by_arm)


def path_rows(matches, **settings):
    return Paths(**settings).tables(subject_of(SAES, matches), None).rows("paths")


def test_every_pair_is_in_one_bin():
    matches = a_match_set(a=(permutation(0), permutation(1)), b=(permutation(2), permutation(3)))
    rows = histogram_rows(SAES, matches)
    assert len(rows) == 2 * 2 * N_BINS
    for pair in PAIRS:
        of_pair = [r for r in rows if r["source_layer"] == pair.source.layer]
        edges = {arm: [r["mse_low"] for r in of_pair if r["arm"] == arm] for arm in "ab"}
        assert edges["a"] == edges["b"]
        for arm in "ab":
            bins = [r for r in of_pair if r["arm"] == arm]
            assert sum(r["n_pairs"] for r in bins) == 24
            match = matches.by_arm[arm][pair]
            errors = feature_mse(FoldedPair(SAES[pair.source], SAES[pair.target]), match)
            low, high = bins[3]["mse_low"], bins[3]["mse_high"]
            assert bins[3]["n_pairs"] == int(((errors >= low) & (errors < high)).sum())


def test_examples_are_the_ends():
    matches = a_match_set(a=(permutation(0), permutation(1)))
    rows = [r for r in example_rows(SAES, matches) if r["source_layer"] == 0]
    assert len(rows) == 2 * N_EXAMPLES
    errors = feature_mse(FoldedPair(SAES[PAIRS[0].source], SAES[PAIRS[0].target]), permutation(0))
    assert [r["mse_W_dec"] for r in rows[:3]] == errors.sort().values[:3].tolist()
    assert rows[-1]["mse_W_dec"] == errors.max().item()
    assert rows[-1]["rank"] == 23
    for row in rows:
        assert row["target_feature"] == permutation(0).columns[row["source_feature"]]


def test_a_match_smaller_than_the_examples_shows_each_pair_once():
    few = Match.from_columns(torch.tensor([4, 3, 2] + [-1] * 21), 24)
    rows = [r for r in example_rows(SAES, a_match_set(a=(few, few))) if r["source_layer"] == 0]
    assert sorted(r["source_feature"] for r in rows) == [0, 1, 2]


def test_a_path_is_the_composition():
    first, second = permutation(0), permutation(1)
    rows = path_rows(a_match_set(a=(first, second)), n_paths=5, seed=3)
    assert len(rows) == 5 * 2
    composed = first.compose(second).columns
    for path in range(5):
        steps = [r for r in rows if r["path"] == path]
        assert [r["step"] for r in steps] == [0, 1]
        assert steps[0]["target_feature"] == steps[1]["source_feature"]
        assert steps[1]["target_feature"] == composed[steps[0]["source_feature"]]
        error = feature_mse(FoldedPair(SAES[PAIRS[0].source], SAES[PAIRS[0].target]), first)
        assert steps[0]["mse_W_dec"] == error[steps[0]["source_feature"]].item()
        a, b = (SAES[SaeKey("default", k)].W_dec for k in (0, 1))
        cosine = torch.cosine_similarity(
            a[steps[0]["source_feature"]], b[steps[0]["target_feature"]], 0
        )
        assert steps[0]["cosine_W_dec"] == pytest.approx(cosine.item(), abs=1e-6)


def test_paths_of_all_arms_start_at_the_same_seeded_features():
    matches = a_match_set(a=(permutation(0),) * 2, b=(permutation(4),) * 2)

    def starts(seed):
        rows = path_rows(matches, n_paths=6, seed=seed)
        first = [r for r in rows if r["step"] == 0]
        return [[r["source_feature"] for r in first if r["arm"] == arm] for arm in "ab"]

    assert starts(0)[0] == starts(0)[1] == starts(0)[0]
    assert starts(0) != starts(1)


def test_a_path_ends_at_a_feature_without_a_partner():
    gone = Match.from_columns(
        torch.where(permutation(1).columns == 5, -1, permutation(1).columns), 24
    )
    lost = int(torch.nonzero(partners(gone) == -1)[0])
    start = int(torch.nonzero(permutation(0).columns == lost)[0])
    features = [start, (start + 1) % 24]
    rows = path_rows(a_match_set(a=(permutation(0), gone)), features=features)
    assert [(r["path"], r["step"]) for r in rows] == [(0, 0), (1, 0), (1, 1)]


def test_wrong_paths():
    with pytest.raises(ValueError, match=r"paths\.n_paths=0 must be greater than or equal to 1"):
        Paths(n_paths=0)
    with pytest.raises(ValueError, match="holds 24, but layer 0 has features 0 to 23"):
        Paths(features=[23, 24]).check_saes(SaeShelf.of(SAES))

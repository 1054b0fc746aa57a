"""Paths through matches of several weighted partners."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_sae
from evaluations import subject_of
from matches import dense, halves, matches, of_dense, permutation, permutations, soft, untimed
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.following import begin, follow
from saematch.evaluate.paths import Paths
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.matching.matches import MatchSet

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 2))
SAES = {SaeKey("default", layer): random_sae(layer, layer=layer) for layer in range(3)}


def weights_of(held, n):
    """Return what each path holds as rows of a matrix."""
    rows = torch.zeros(len(held), n, dtype=torch.float64)
    for row, features in zip(rows, held.values(), strict=True):
        for feature, weight in features.items():
            row[feature] = weight
    return rows


@untimed
@given(st.data(), matches() | permutations())
def test_without_a_limit_a_path_holds_its_row_of_the_composition(data, first):
    second = data.draw(matches(n=first.n_target))
    steps, held = follow(begin(range(first.n_source)), first, 100)
    assert [(s.source_feature, s.target_feature) for s in steps] == list(
        zip(first.rows.tolist(), first.columns.tolist(), strict=True)
    )
    assert [s.weight for s in steps] == [s.path_weight for s in steps] == first.weights.tolist()
    assert list(held) == first.matched.tolist(), "a path ends where there is no partner"
    steps, held = follow(held, second, 100)
    expected = dense(first) @ dense(second)
    assert {step.dropped_mass for step in steps} <= {0.0}
    torch.testing.assert_close(weights_of(held, second.n_target), expected[list(held)])
    assert not expected[[n for n in range(first.n_source) if n not in held]].any()


def test_a_path_by_hand():
    """Feature 0 reaches 0, 1 and 2; of these 1 and 2 are held, and both reach 1."""
    first = of_dense(torch.tensor([[0.25, -0.5, 0.5], [0.0, 1.0, 0.0]]))
    second = of_dense(torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.5]]))
    steps, held = follow(begin([0]), first, 2)
    assert [tuple(step) for step in steps] == [
        (0, 0, 0, 0, 0.25, 0.25, 0.2),
        (0, 1, 0, 1, -0.5, -0.5, 0.2),
        (0, 2, 0, 2, 0.5, 0.5, 0.2),
    ]
    assert held == {0: {1: -0.5, 2: 0.5}}
    steps, held = follow(held, second, 1)
    # to feature 0: -1/4; to feature 1: -1/2 + 1/4 = -1/4; equal, so the first is held
    assert [tuple(step)[1:] for step in steps] == [
        (1, 1, 0, 0.5, -0.25, 0.5),
        (2, 1, 1, 1.0, -0.5, 0.5),
        (3, 2, 1, 0.5, 0.25, 0.5),
    ]
    assert held == {0: {0: -0.25}}


def rows_of(*of_arm, **settings):
    matches = MatchSet(PAIRS, {"a": dict(zip(PAIRS, of_arm, strict=True))})
    return Paths(**settings).tables(subject_of(SAES, matches), None).rows("paths")


def test_the_rows_of_a_permutation_are_one_a_step():
    rows = rows_of(permutation(0), permutation(1), n_paths=5, breadth=1)
    assert [(r["path"], r["step"]) for r in rows] == [(p, s) for s in (0, 1) for p in range(5)]
    for row in rows:
        assert (row["weight"], row["path_weight"], row["dropped_mass"]) == (1.0, 1.0, 0.0)


def test_the_rows_of_several_partners_are_one_an_entry():
    rows = rows_of(halves(), soft(2), features=[7, 23], breadth=1)
    first = [r for r in rows if r["step"] == 0]
    assert [(r["path"], r["source_feature"], r["target_feature"]) for r in first] == [
        (0, 7, 7),
        (0, 7, 8),
        (1, 23, 23),
    ]
    assert [r["dropped_mass"] for r in first] == [0.5, 0.5, 0.0]
    second = [r for r in rows if r["step"] == 1]
    assert [(r["path"], r["source_feature"]) for r in second] == [(0, 7)] * 3 + [(1, 23)] * 3
    for row in second:
        weight = dense(soft(2))[row["source_feature"], row["target_feature"]].item()
        assert (row["weight"], row["path_weight"]) == (weight, pytest.approx(0.5 * weight))
    match = soft(2)
    errors = feature_mse(FoldedPair(*(SAES[key] for key in PAIRS[1])), match)
    a, b = (SAES[key].W_dec for key in PAIRS[1])
    for row in second:
        i, j = row["source_feature"], row["target_feature"]
        (entry,) = torch.nonzero((match.rows == i) & (match.columns == j)).flatten()
        assert row["mse_W_dec"] == errors[entry].item()
        assert row["cosine_W_dec"] == pytest.approx(
            torch.cosine_similarity(a[i], b[j], 0).item(), abs=1e-6
        )


def test_every_path_ends_where_none_of_its_features_has_a_partner():
    gone = soft(3, gone=range(24))
    rows = rows_of(halves(), gone, features=[3, 4])
    assert {r["step"] for r in rows} == {0}


@pytest.mark.parametrize("breadth", [0, -1, 1.5])
def test_a_breadth_that_holds_nothing_is_refused(breadth):
    with pytest.raises(ValueError, match=rf"evaluations\.paths\.breadth={breadth}"):
        Paths(breadth=breadth)

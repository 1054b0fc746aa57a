"""The optimal match of candidates, and fixed levels."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from conftest import random_sae
from matches import partners, untimed
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.sparse_map import SparseMap


def of_dense(scores):
    """Return the finite scores as candidates."""
    rows, columns = np.nonzero(np.isfinite(scores))
    return Candidates(
        *(torch.from_numpy(part) for part in (rows, columns, scores[rows, columns])), *scores.shape
    )


def drawn(n, m, share, seed=0):
    random = np.random.default_rng(seed)
    return np.where(random.random((n, m)) < share, random.normal(0, 1, (n, m)), -np.inf)


SIZES = [(30, 30), (20, 30), (30, 20), (1, 1), (1, 4)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_optimal_match_of_candidates_equals_scipy_s_dense_one(n, m, share):
    scores = drawn(n, m, share, seed=n + m)
    if n > 1:
        scores[:, :n] = np.where(np.eye(n, min(n, m)) > 0, -1.0, scores[:, :n])
    else:
        scores[0, 0] = 0.0  # a score of 0 is a candidate too
    match = Optimal().of_candidates(of_dense(scores))
    rows, columns = linear_sum_assignment(np.where(np.isfinite(scores), scores, -1e6), True)
    value = scores[rows, columns].sum()
    assert len(match.rows) == min(n, m) and match.one_partner
    assert len(set(match.columns.tolist())) == min(n, m)
    assert match.certificate.value == pytest.approx(value)
    assert match.certificate.bound == match.certificate.value
    np.testing.assert_array_equal(match.scores, scores[match.rows, match.columns])
    assert np.isfinite(scores[match.rows, match.columns]).all()


@untimed
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 999), st.sampled_from([-0.5, 0, 0.4]))
def test_a_level_leaves_features_unmatched(n, m, seed, level):
    """Brute force: each row takes a column of its candidates, or none, which is worth the level."""
    scores = drawn(n, m, 0.6, seed)
    match = Optimal(unmatched=float(level)).of_candidates(of_dense(scores))
    small = scores if n <= m else scores.T
    padded = np.hstack([small, np.full((len(small), len(small)), level)])
    best = max(
        sum(padded[i, j] for i, j in enumerate(columns))
        for columns in permutations(range(padded.shape[1]), len(small))
    )
    assert match.certificate.value == pytest.approx(best, abs=1e-12)
    assert match.certificate.bound == match.certificate.value
    assert match.certificate.chance is None
    assert (match.scores > level).all()
    assert len(set(match.columns.tolist())) == len(match.columns) and match.one_partner


@pytest.mark.parametrize("sizes", [(80, 80), (50, 80), (80, 50)])
def test_a_level_means_the_same_for_vectors_and_candidates(sizes):
    g = torch.Generator().manual_seed(0)
    factors = Factors(*(torch.randn(n, 6, generator=g) for n in sizes))
    similarity = (factors.X_A.double() @ factors.X_B.double().T).numpy()
    matcher = Optimal(unmatched=2.5, tolerance=0.0)
    dense, sparse = matcher(factors), matcher.of_candidates(of_dense(similarity))
    assert torch.equal(partners(dense), partners(sparse))
    assert 0 < len(dense.rows) < min(sizes)
    assert dense.certificate.value == pytest.approx(sparse.certificate.value)
    assert (dense.scores > 2.5).all()


def test_without_a_full_match_the_reason_is_given():
    scores = np.full((4, 5), -np.inf)
    scores[0, 1] = scores[2, 1] = scores[3, 2] = 1.0
    message = "not all of the 4 source features can have a partner among their candidates"
    with pytest.raises(InputError, match=rf"{message} \(1 have no candidate\): set matcher"):
        Optimal().of_candidates(of_dense(scores))
    scores[1, 2] = 1.0
    with pytest.raises(InputError, match=rf"{message} \(at most 2 can have one together\)"):
        Optimal().of_candidates(of_dense(scores))
    with pytest.raises(InputError, match=r"the 4 target features .*at most 2"):
        Optimal().of_candidates(of_dense(scores.T))
    assert len(Optimal(unmatched=0.0).of_candidates(of_dense(scores)).rows) == 2


def test_no_candidates_leave_every_feature_unmatched():
    match = Optimal(unmatched=0.5).of_candidates(of_dense(np.full((3, 4), -np.inf)))
    assert len(match.rows) == 0
    assert match.certificate.value == match.certificate.bound == 1.5


@pytest.mark.parametrize("level", [True, "0.1"])
def test_a_level_of_another_type_is_refused(level):
    with pytest.raises(InputError, match=r"matcher\.unmatched="):
        Optimal(unmatched=level)


def test_arms_take_levels_and_candidates():
    source, target = random_sae(0), random_sae(1)
    match = Arm("none", DecoderCosine(), Optimal(unmatched=0.3)).match(source, target)
    assert (match.scores > 0.3).all() and 0 < len(match.rows) < 24
    arm = Arm("none", SparseMap(n_candidates=24), Optimal(unmatched=0.0))
    assert arm.match(source, target).one_partner
    with pytest.raises(InputError, match="can have a partner among their candidates"):
        replace(arm, objective=SparseMap(1, 1), matcher=Optimal()).match(source, target)

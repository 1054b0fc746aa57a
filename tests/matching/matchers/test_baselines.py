import logging

import pytest
import torch

from matches import partners
from saematch.matching import blocks
from saematch.matching.matchers import (
    ChanceLevel,
    Greedy,
    Identity,
    MutualNearest,
    Optimal,
    Random,
    Scipy,
)
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import Parts
from saematch.matching.planted import planted


def factors(seed, n_source, n_target=None, size=6):
    g = torch.Generator().manual_seed(seed)
    n_target = n_target or n_source
    return Factors(
        torch.randn(n_source, size, generator=g), torch.randn(n_target, size, generator=g)
    )


@pytest.mark.parametrize(("n_source", "n_target"), [(80, 80), (50, 80), (80, 50)])
def test_optimal_equals_scipy(n_source, n_target):
    f = factors(0, n_source, n_target)
    ours, theirs = Optimal()(f), Scipy()(f)
    assert torch.equal(partners(ours), partners(theirs))
    assert ours.certificate.value == pytest.approx(theirs.certificate.value, rel=1e-6)
    assert ours.certificate.gap <= 1e-6
    assert theirs.certificate.gap is None
    assert ours.is_permutation == (n_source == n_target)


def test_optimal_may_leave_features_alone():
    truth = planted(600, 60, persist=0.5, cosine=(0.85, 0.95), spread=0.05)
    match = Optimal(unmatched=ChanceLevel())(truth.factors)
    columns, shared = partners(match), truth.columns >= 0
    assert (columns == truth.columns)[shared].float().mean() > 0.95
    assert (columns[~shared] == -1).float().mean() > 0.9


def test_a_missed_tolerance_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        match = Optimal(time_limit=0.0)(factors(1, 200))
    assert "time limit" in caplog.text
    assert match.certificate.gap > 1e-6
    with pytest.raises(ValueError, match="tolerance is -1"):
        Optimal(tolerance=-1.0)


def greedy_by_hand(similarity):
    similarity, pairs = similarity.clone(), {}
    for _ in range(min(similarity.shape)):
        i, j = divmod(similarity.argmax().item(), similarity.shape[1])
        pairs[i] = j
        similarity[i], similarity[:, j] = -torch.inf, -torch.inf
    return [pairs.get(i, -1) for i in range(len(similarity))]


@pytest.mark.parametrize(("n_source", "n_target"), [(1, 1), (60, 60), (40, 60), (60, 40)])
@pytest.mark.parametrize("n_candidates", [1, 5, 256])
@pytest.mark.parametrize("size", [1, 6])
def test_greedy_takes_the_best_pair_that_is_left(
    n_source, n_target, n_candidates, size, monkeypatch
):
    monkeypatch.setattr(blocks, "N_CANDIDATES", n_candidates)
    f = factors(2, n_source, n_target, size)
    assert partners(Greedy()(f)).tolist() == greedy_by_hand(f.X_A @ f.X_B.T)


@pytest.mark.parametrize(("n_source", "n_target"), [(60, 60), (40, 60), (60, 40)])
def test_mutual_nearest_are_each_other_s_best(n_source, n_target):
    f = factors(3, n_source, n_target)
    similarity = f.X_A @ f.X_B.T
    forward, back = similarity.argmax(1), similarity.argmax(0)
    expected = torch.where(back[forward] == torch.arange(n_source), forward, -1)
    assert torch.equal(partners(MutualNearest()(f)), expected)
    assert 0 < (expected >= 0).sum() < min(n_source, n_target)


def candidates_of(similarity):
    """Return a third of the pairs as candidates, and their dense similarities."""
    chosen = torch.rand(similarity.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    chosen[1], chosen[:, 2] = False, False  # features without a candidate
    rows, columns = torch.nonzero(chosen, as_tuple=True)
    candidates = Candidates(rows, columns, similarity[rows, columns].double(), *similarity.shape)
    return candidates, torch.where(chosen, similarity, -torch.inf)


@pytest.mark.parametrize(("n_source", "n_target"), [(60, 60), (40, 60), (60, 40)])
def test_mutual_nearest_and_greedy_of_candidates(n_source, n_target):
    f = factors(3, n_source, n_target)
    candidates, similarity = candidates_of(f.X_A @ f.X_B.T)
    forward, back = similarity.argmax(1), similarity.argmax(0)
    mutual = (back[forward] == torch.arange(n_source)) & similarity.isfinite().any(1)
    match = MutualNearest().of_candidates(candidates)
    assert torch.equal(partners(match), torch.where(mutual, forward, -1))
    assert match.certificate.value == pytest.approx(match.scores.sum().item())
    expected, left = [-1] * n_source, similarity.clone()
    while left.isfinite().any():
        i, j = divmod(left.argmax().item(), n_target)
        expected[i], left[i], left[:, j] = j, -torch.inf, -torch.inf
    assert partners(Greedy().of_candidates(candidates)).tolist() == expected
    assert torch.equal(match.scores, similarity[match.rows, match.columns].double())


def test_no_baseline_beats_the_optimum():
    f = factors(4, 70)
    best = Optimal()(f).certificate
    for baseline in (Greedy(), Identity(), Random(0)):
        assert baseline(f).certificate.value < best.value
        assert baseline(f).certificate.bound is None


def test_identity_and_random():
    f = factors(0, 50)
    assert torch.equal(Identity()(f).columns, torch.arange(50))
    assert Identity()(f).certificate.value == pytest.approx((f.X_A * f.X_B).sum().item(), rel=1e-5)
    first, same, other = Random(1)(f), Random(1)(f), Random(2)(f)
    assert first.is_permutation
    assert torch.equal(first.columns, same.columns)
    assert not torch.equal(first.columns, other.columns)


@pytest.mark.parametrize("assignment", [Identity(), Random(0)])
@pytest.mark.parametrize(("n_source", "n_target"), [(3, 7), (7, 3)])
def test_baselines_of_two_widths_match_the_smaller_side(assignment, n_source, n_target):
    match = assignment(factors(0, n_source, n_target))
    assert len(match.rows) == 3
    assert len(set(match.columns.tolist())) == 3


def test_factors_refuse_nan_and_different_sizes():
    f = factors(0, 3)
    with pytest.raises(ValueError, match="NaN"):
        Factors(f.X_A * float("nan"), f.X_B)
    with pytest.raises(ValueError, match="d_model"):
        Factors(f.X_A, f.X_B[:, :4])


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (-1.0, 1.0, 1.0)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights of the parts"):
        Parts(*weights)

import itertools

import numpy as np
import pytest
import torch

from saematch.matching.assignment import Exact, Identity, Random
from saematch.matching.assignment.exact import dual_bound, optimal_prices
from saematch.matching.objectives import Factors, Parts


def factors(seed, n_from, n_to=None, size=6):
    g = torch.Generator().manual_seed(seed)
    n_to = n_to or n_from
    return Factors(torch.randn(n_from, size, generator=g), torch.randn(n_to, size, generator=g))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_equals_brute_force(n, seed):
    f = factors(seed, n)
    match = Exact()(f)
    similarity = (f.X_A.double() @ f.X_B.double().T).numpy()
    best = max(similarity[range(n), p].sum() for p in itertools.permutations(range(n)))
    assert match.is_permutation
    assert match.certificate.value == pytest.approx(best)
    assert match.certificate.gap < 1e-9


def test_a_planted_permutation_comes_back():
    f = factors(3, 200, size=30)
    columns = torch.randperm(200, generator=torch.Generator().manual_seed(4))
    later = torch.empty_like(f.X_A)
    later[columns] = f.X_A + 0.1 * f.X_B
    match = Exact()(Factors(f.X_A, later))
    assert torch.equal(match.columns, columns)
    assert match.certificate.gap < 1e-9


def test_the_bound_is_proven_and_not_copied_from_the_value():
    """For a permutation that is not optimal the same prices must show a gap."""
    f = factors(5, 40)
    similarity = (f.X_A.double() @ f.X_B.double().T).numpy()
    best = Exact()(f)
    wrong = best.columns.roll(1).numpy()
    bound = dual_bound(similarity, optimal_prices(similarity, wrong))
    assert bound >= best.certificate.value - 1e-9
    assert bound > similarity[np.arange(40), wrong].sum() + 1


def test_any_prices_bound_the_value():
    f = factors(6, 30)
    similarity = (f.X_A.double() @ f.X_B.double().T).numpy()
    value = Exact()(f).certificate.value
    rng = np.random.default_rng(0)
    assert all(dual_bound(similarity, rng.normal(size=30)) >= value for _ in range(20))


def test_zero_and_equal_vectors():
    f = factors(7, 20)
    f.X_A[:5] = 0
    f.X_B[3:9] = f.X_B[3]
    assert Exact()(f).certificate.gap < 1e-9


def test_exact_refuses_different_widths():
    with pytest.raises(ValueError, match="these have 4 and 5"):
        Exact()(factors(0, 4, 5))


def test_identity_and_random():
    f = factors(0, 50)
    assert torch.equal(Identity()(f).columns, torch.arange(50))
    assert Identity()(f).certificate.value == pytest.approx((f.X_A * f.X_B).sum().item(), rel=1e-5)
    one, same, other = Random(1)(f), Random(1)(f), Random(2)(f)
    assert one.is_permutation
    assert torch.equal(one.columns, same.columns)
    assert not torch.equal(one.columns, other.columns)


@pytest.mark.parametrize("assignment", [Identity(), Random(0)])
@pytest.mark.parametrize(("n_from", "n_to"), [(3, 7), (7, 3)])
def test_baselines_of_two_widths_match_the_smaller_side(assignment, n_from, n_to):
    match = assignment(factors(0, n_from, n_to))
    assert len(match.rows) == 3
    assert len(set(match.columns.tolist())) == 3


def test_factors_refuse_nan_and_different_sizes():
    f = factors(0, 3)
    with pytest.raises(ValueError, match="NaN"):
        Factors(f.X_A * float("nan"), f.X_B)
    with pytest.raises(ValueError, match="d_model"):
        Factors(f.X_A, f.X_B[:, :4])


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (-1.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights of the parts"):
        Parts(*weights)

"""Transport plans against POT, and features that only one of two layers has."""

import logging
import math

import numpy as np
import ot
import pytest
import torch
from torch.nn.functional import normalize

from conftest import random_sae
from matches import dense
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import Sinkhorn
from saematch.matching.matchers.sinkhorn import DenseKernel, SparseKernel
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.planted import planted
from saematch.matching.solver.products import Plan, Products, Regime

SIZES = [(30, 40), (40, 30), (25, 25)]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 logits of up to 100
EXACT = {"tolerance": 1e-6, "max_iterations": 5000}


def unit(n, seed, size=8):
    vectors = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    return normalize(vectors, dim=1)


def all_pairs(similarity):
    """Return a similarity as candidates, one for each pair."""
    n, m = similarity.shape
    rows, columns = torch.cartesian_prod(torch.arange(n), torch.arange(m)).T.contiguous()
    return Candidates(rows, columns, similarity.flatten(), n, m)


def margins(n, m):
    return np.full(n, 1 / n), np.full(m, 1 / m)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("epsilon", [0.3, 0.05])
def test_the_balanced_plan_is_that_of_pot(n, m, epsilon):
    factors = Factors(unit(n, 0), unit(m, 1))
    similarity = factors.X_A.double() @ factors.X_B.double().T
    expected = ot.sinkhorn(
        *margins(n, m), -similarity.numpy(), epsilon, "sinkhorn_log", 100_000, 1e-10
    )
    matcher = Sinkhorn(epsilon, k=m, **EXACT)
    for match in (matcher(factors), matcher.of_candidates(all_pairs(similarity))):
        np.testing.assert_allclose(dense(match).numpy() / n, expected, atol=1e-6)
        assert match.dropped == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(match.scores, similarity[match.rows, match.columns])
        torch.testing.assert_close(dense(match).sum(1), torch.ones(n).double(), **CLOSE)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize(("epsilon", "rho"), [(0.3, 0.1), (0.3, 3.0), (0.05, 0.2)])
def test_the_unbalanced_plan_is_that_of_pot(n, m, epsilon, rho):
    factors = Factors(unit(n, 0), unit(m, 1))
    similarity = factors.X_A.double() @ factors.X_B.double().T
    cost = 1 - similarity.numpy() - epsilon * math.log(max(n, m))
    expected = ot.unbalanced.sinkhorn_unbalanced(
        *margins(n, m), cost, epsilon, rho, "sinkhorn", reg_type="kl",
        numItermax=5000, stopThr=1e-10,
    )  # fmt: skip
    matcher = Sinkhorn(epsilon, rho, k=m, **EXACT)
    for match in (matcher(factors), matcher.of_candidates(all_pairs(similarity))):
        np.testing.assert_allclose(dense(match).numpy() / n, expected, atol=1e-6)


def test_the_largest_entries_of_each_row_are_kept_and_the_rest_is_counted():
    factors = Factors(unit(30, 0), unit(40, 1))
    whole = dense(Sinkhorn(0.3, k=40)(factors))
    match = Sinkhorn(0.3, k=3)(factors)
    expected = torch.zeros_like(whole)
    largest = whole.topk(3, 1)
    expected.scatter_(1, largest.indices, largest.values)
    torch.testing.assert_close(dense(match), expected)
    assert match.dropped == pytest.approx(1 - float(largest.values.sum()) / 30)


def test_blocks_and_similarities_in_memory_give_one_plan():
    factors = Factors(unit(50, 0), unit(40, 1))
    v = torch.linspace(-2, 2, 40).double()
    sweeps = []
    for how in (Plan(Regime.WHOLE, 40, 50), Plan(Regime.BLOCKS, 16, 7)):
        kernel = DenseKernel(Products(factors.X_A, factors.X_B, how), 0.05, 0.5)
        sweeps.append((*kernel.sweep(v, lambda sums: -0.9 * sums), kernel.best(v, 5)))
    for one, other in zip(*sweeps, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_column_without_mass_in_float32_is_computed_in_the_log_domain():
    factors = Factors(unit(30, 0), unit(20, 1))
    factors.X_B[4] = -factors.X_A.mean(0)  # far from every row
    logits = (factors.X_A.double() @ factors.X_B.double().T) / 1e-3
    how = Plan(Regime.BLOCKS, 16, 7)
    kernel = DenseKernel(Products(factors.X_A, factors.X_B, how), 1e-3, 0.0)
    u, sums = kernel.sweep(torch.zeros(20).double(), lambda of_rows: -of_rows)
    assert float((u + logits[:, 4]).max()) < -104, "below the smallest number of float32"
    torch.testing.assert_close(u, -logits.logsumexp(1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sums, (u[:, None] + logits).logsumexp(0), rtol=1e-5, atol=1e-3)


def test_newborn_features_stay_unmatched_only_if_unbalanced():
    case = planted(300, 256, persist=0.7, cosine=(0.7, 0.95))
    factors = Factors(*(normalize(side, dim=1) for side in (case.factors.X_A, case.factors.X_B)))
    persists = case.columns >= 0
    balanced = Sinkhorn(0.02)(factors)
    assert len(balanced.matched) == 300
    unbalanced = Sinkhorn(0.02, rho=0.2, least_mass=0.4)(factors)
    has_partner = torch.isin(torch.arange(300), unbalanced.matched)
    assert torch.equal(has_partner, persists)
    heaviest = dense(unbalanced).argmax(1)
    assert torch.equal(heaviest[persists], case.columns[persists])


def test_a_pair_without_competitors_keeps_a_mass_by_its_similarity():
    cosines = torch.tensor([1.0, 0.8, 0.3]).double()
    candidates = Candidates(torch.arange(3), torch.arange(3), cosines, 3, 3)
    weights = Sinkhorn(0.05, rho=0.2, k=3, tolerance=1e-9).of_candidates(candidates).weights
    torch.testing.assert_close(weights, ((cosines - 1) / 0.45).exp())


def test_only_features_with_candidates_take_part():
    rows, columns = torch.tensor([1, 1, 3]), torch.tensor([0, 4, 4])
    candidates = Candidates(rows, columns, torch.tensor([0.5, 0.4, 0.9]).double(), 5, 6)
    match = Sinkhorn(0.1, k=6, tolerance=1e-9).of_candidates(candidates)
    assert (match.n_source, match.n_target) == (5, 6)
    weights = torch.zeros(5, 6).double()
    weights[1, 0] = weights[3, 4] = 1.0
    torch.testing.assert_close(dense(match), weights, atol=5e-3, rtol=0)
    empty = Candidates(rows[:0], columns[:0], candidates.scores[:0], 5, 6)
    assert not len(Sinkhorn(k=6).of_candidates(empty).rows)
    assert SparseKernel(rows[:0], columns[:0], candidates.scores[:0], 0.1, 0.0).n == 0


def test_the_last_iteration_is_returned_with_a_warning(caplog):
    factors = Factors(unit(30, 0), unit(40, 1))
    with caplog.at_level(logging.WARNING):
        match = Sinkhorn(0.01, k=40, max_iterations=2)(factors)
    assert "increase max_iterations or epsilon" in caplog.text
    torch.testing.assert_close(dense(match).sum(1), torch.ones(30).double(), **CLOSE)


def test_an_arm_matches_with_it():
    arm = Arm("decoder_norm", DecoderCosine(), Sinkhorn(k=3))
    match = arm.match(random_sae(0), random_sae(1, n_features=30))
    assert (match.n_source, match.n_target) == (24, 30) and not match.one_partner
    assert match.scores is not None


def test_more_partners_than_the_target_has_features_are_refused():
    factors = Factors(unit(30, 0), unit(10, 1))
    candidates = all_pairs(factors.X_A.double() @ factors.X_B.double().T)
    matcher = Sinkhorn(k=11)
    for match in (lambda: matcher(factors), lambda: matcher.of_candidates(candidates)):
        with pytest.raises(InputError, match=r"matcher.k=11 is more than the 10 features"):
            match()
    assert Sinkhorn(k=10).width_refusal(10) is None


@pytest.mark.parametrize("setting", [{"epsilon": 0.0}, {"rho": 0.0}, {"k": 0}, {"least_mass": 1.5}])
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(InputError, match=f"matcher.{next(iter(setting))}="):
        Sinkhorn(**setting)

"""Proofs of prices and matches that do not come from a solver."""

import math

import numpy as np
import pytest
import torch

from saematch.matching.solver.certificate import prove
from saematch.matching.solver.products import Plan, Products, Regime
from saematch.matching.solver.screening import MOST_CONTENDERS, pairs_above


def products_of(x, y, regime=Regime.WHOLE):
    return Products(x, y, Plan(regime, min(len(y), 20), 16))


@pytest.fixture
def sides():
    g = torch.Generator().manual_seed(0)
    return torch.randn(50, 8, generator=g), torch.randn(50, 8, generator=g)


def test_by_hand():
    """Similarities [[3, 1], [2, 2]]; prices 1 and 0: profits 2 and 2, bound 5, the identity 5."""
    x, y = torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.eye(2)
    products = products_of(x, y)
    proof = prove(products, np.array([0, 1]), np.array([1.0, 0.0]))
    assert (proof.certificate.value, proof.certificate.bound) == (5.0, 5.0)
    assert proof.profits.tolist() == [2.0, 2.0]
    other = prove(products, np.array([1, 0]), np.array([1.0, 0.0]))
    assert (other.certificate.value, other.certificate.bound) == (3.0, 5.0)
    assert other.certificate.gap == pytest.approx(0.4)
    alone = prove(products, np.array([0, -1]), np.array([0.5, 0.0]), outside=2.5)
    assert (alone.certificate.value, alone.certificate.bound) == (5.5, 2.5 + 2.5 + 0.5)


@pytest.mark.parametrize("regime", [Regime.WHOLE, Regime.BLOCKS])
def test_any_prices_give_the_bound_of_the_formula(sides, regime):
    x, y = sides
    similarity = (x.double() @ y.double().T).numpy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        prices, columns = rng.normal(size=50), rng.permutation(50)
        proof = prove(products_of(x, y, regime), columns, prices)
        assert proof.certificate.bound == pytest.approx(
            (similarity - prices).max(axis=1).sum() + prices.sum(), rel=1e-14
        )
        assert proof.certificate.value == pytest.approx(
            similarity[np.arange(50), columns].sum(), rel=1e-13
        )


def test_ties_of_many_are_decided_in_float64():
    """More columns are equal up to 1e-9 than are computed one by one."""
    n = 4 * MOST_CONTENDERS
    x, y = torch.ones(n, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)
    y[17] += 1e-9
    proof = prove(products_of(x, y), np.arange(n), np.zeros(n))
    assert np.array_equal(proof.profits, np.full(n, 1 + 1e-9))


def test_negative_prices_are_refused_where_columns_may_stay_free(sides):
    x, y = sides
    prices = np.full(50, -1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        prove(products_of(x[:40], y), np.arange(40), prices)
    with pytest.raises(ValueError, match="must not be negative"):
        prove(products_of(x, y), np.arange(50), prices, outside=0.0)


def test_all_pairs_above_a_floor_are_found(sides):
    x, y = sides
    similarity = (x.double() @ y.double().T).numpy()
    rows, columns, net = pairs_above(products_of(x, y), np.zeros(50), np.full(50, 2.0), 2500)
    assert net == pytest.approx(similarity[rows, columns], rel=1e-13, abs=1e-14)
    pairs = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert pairs >= set(zip(*np.nonzero(similarity >= 2.0), strict=True))
    assert pairs_above(products_of(x, y), np.zeros(50), np.full(50, 2.0), len(pairs) - 1) is None
    assert len(pairs) <= (similarity >= 2.0 - 1e-3).sum()


def test_values_that_differ_by_rounding_alone_are_equal():
    x = torch.tensor([[0.1, 0.7], [0.3, 0.2]])
    proof = prove(products_of(x, torch.eye(2)), np.array([1, 0]), np.array([0.0, 0.1]))
    assert proof.certificate.gap == 0
    assert math.isfinite(proof.slack)


def test_values_that_are_not_a_match_prove_nothing(sides):
    products = products_of(*sides)
    with pytest.raises(AssertionError, match="two rows"):
        prove(products, np.zeros(50, np.int64), np.zeros(50))
    with pytest.raises(AssertionError, match="without a column"):
        prove(products, np.append(np.arange(49), -1), np.zeros(50))

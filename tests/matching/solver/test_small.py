"""Shortest paths against SciPy, and the compiled proof against the general one."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saematch import SolverResources, solve_assignment
from saematch.matching.planted import planted
from saematch.matching.solver import solve
from saematch.matching.solver.certificate import prove
from saematch.matching.solver.paths import shortest_paths
from saematch.matching.solver.products import Plan, Products, Regime
from saematch.matching.solver.small import solve_small

NONE = -math.inf


@pytest.mark.parametrize("kind", ["normal", "integers", "zero"])
@pytest.mark.parametrize(
    ("n", "m", "outside"),
    [(1, 1, NONE), (5, 5, NONE), (70, 70, NONE), (30, 150, NONE), (30, 50, 0.5), (50, 30, 1.0),
     (40, 40, 2.5), (1, 3, 9.0)],
)  # fmt: skip
def test_shortest_paths_are_optimal_and_their_prices_prove_it(kind, n, m, outside):
    for seed in range(10):
        similarity = np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32)
        similarity = {"normal": similarity, "integers": similarity.round(), "zero": 0 * similarity}[
            kind
        ]
        columns, prices = shortest_paths(similarity, outside)
        exact, matched = similarity.astype(float), columns >= 0
        wide = exact if outside == NONE else np.hstack([exact, np.full((n, n), outside)])
        best = wide[linear_sum_assignment(wide, maximize=True)].sum()
        value = exact[np.flatnonzero(matched), columns[matched]].sum()
        value += 0.0 if matched.all() else outside * (~matched).sum()
        assert len(set(columns[matched])) == matched.sum()
        assert value == pytest.approx(best, rel=1e-12, abs=1e-12)
        bound = np.maximum((exact - prices).max(1), outside).sum() + prices.sum()
        assert bound == pytest.approx(best, rel=1e-12, abs=1e-12)
        if n < m or outside > NONE:
            assert (prices >= 0).all()
            assert (np.delete(prices, columns[matched]) == 0).all()


@pytest.mark.parametrize("persist", [0.7, 0.0])
@pytest.mark.parametrize(("n", "outside"), [(200, NONE), (120, NONE), (200, 0.3), (120, 0.3)])
def test_the_compiled_proof_is_the_general_proof(n, outside, persist):
    factors = planted(200, 30, persist=persist).factors
    x, y = factors.X_A[:n], factors.X_B
    small = solve_small(x, y, outside)
    products = Products(x, y, Plan(Regime.WHOLE, 200, 200))
    proof = prove(products, small.columns, small.prices, outside)
    ours, general = small.proof.certificate, proof.certificate
    assert (ours.value, ours.bound) == pytest.approx((general.value, general.bound), rel=1e-14)
    assert (ours.chance is None) == (general.chance is None) == (outside > NONE)
    assert (ours.chance or 0.0) == pytest.approx(general.chance or 0.0, rel=1e-12)
    assert ours.n_90 == general.n_90
    assert np.array_equal(small.proof.certain, proof.certain)
    assert ours.certain == pytest.approx(general.certain)
    assert 0.5 < ours.certain < 1
    assert small.proof.profits == pytest.approx(proof.profits, rel=1e-13)
    assert small.proof.slack == pytest.approx(proof.slack, abs=1e-12)


def test_a_kernel_bounds_contenders_like_tensors():
    """The proofs of similarities that are held, and of blocks, which tensors screen."""
    factors = planted(300, 40).factors
    solution = solve_assignment(factors.X_A, factors.X_B)
    held, blocks = (
        prove(
            Products(factors.X_A, factors.X_B, Plan(regime, 300, 64)),
            solution.columns,
            solution.prices,
        )
        for regime in (Regime.WHOLE, Regime.BLOCKS)
    )
    assert held.slack == blocks.slack
    assert held.profits == pytest.approx(blocks.profits, rel=1e-14)
    assert np.array_equal(held.certain, blocks.certain)


def test_unusual_vectors_take_the_general_way(monkeypatch):
    x, y = planted(80, 20).factors.X_A, planted(80, 20).factors.X_B
    unusual = {
        "common part": (x + 3, y + 3),
        "zero": (x * 0, y),
        "not finite": (torch.full_like(x, math.nan), y),
        "many ties": (x[:1].repeat(80, 1), y[:1].repeat(80, 1)),
    }
    for name, sides in unusual.items():
        assert solve_small(*sides, NONE) is None, name
    assert solve_small(x, y, NONE) is not None
    monkeypatch.setattr(solve, "solve_small", None)
    for resources in (SolverResources(memory_gib=1.0), SolverResources(device="cpu")):
        assert solve_assignment(x, y, resources=resources).gap_over_chance <= 1e-6

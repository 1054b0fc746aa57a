"""The solver against SciPy and brute force, in every regime, on kind and on hostile instances."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saematch import SolverResources, solve_assignment
from saematch.matching.planted import planted
from saematch.matching.solver import auction, products, solve
from saematch.matching.solver.solve import Status

REGIMES = ("whole", "paths", "blocks", "device")
"""Regimes of the auction, and shortest paths, which solve small problems that are held whole."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solved(x_a, x_b, regime="whole", **settings):
    """Solve in a given regime: ``blocks`` with short lists, and a budget for blocks of 32 rows."""
    resources = {"regime": "whole" if regime == "paths" else regime}
    if regime == "blocks":
        budget = 4 * 32 * products.BYTES_A_SIMILARITY * max(len(x_a), len(x_b))
        resources["memory_gib"] = budget / products.GIB
    if regime == "device":
        resources["device"] = "cpu"
    with pytest.MonkeyPatch.context() as patch:
        if regime == "blocks":
            patch.setattr(products, "LONGEST_LIST", 40)
        if regime != "paths":
            patch.setattr(solve, "SMALL", 0)
        solution = solve_assignment(x_a, x_b, resources=SolverResources(**resources), **settings)
    assert solution.regime == resources["regime"]
    return solution


def oracle(x_a, x_b, unmatched=None):
    """SciPy's value; each feature of the smaller side may have a way out of its own."""
    similarity = x_a.double().numpy() @ x_b.double().numpy().T
    if len(x_a) > len(x_b):
        similarity = similarity.T
    if unmatched is not None:
        n = len(similarity)
        similarity = np.hstack([similarity, np.full((n, n), float(unmatched))])
    return similarity[linear_sum_assignment(similarity, maximize=True)].sum()


def check(solution, x_a, x_b, unmatched=None, rel=1e-6):
    """Hold a solution against SciPy, its own columns and its own prices."""
    similarity = x_a.double().numpy() @ x_b.double().numpy().T
    n_a, n_b = similarity.shape
    rows = np.flatnonzero(solution.columns >= 0)
    columns = solution.columns[rows]
    assert solution.columns.dtype == np.int64
    assert len(set(columns.tolist())) == len(columns)
    alone = min(n_a, n_b) - len(rows)
    assert alone == 0 or unmatched is not None
    value = similarity[rows, columns].sum() + (alone * unmatched if alone else 0.0)
    scale = np.abs(similarity).max() * min(n_a, n_b)
    assert solution.value == pytest.approx(value, rel=1e-12, abs=1e-12 * scale)
    best = oracle(x_a, x_b, unmatched)
    assert solution.value <= best + 1e-12 * scale
    assert solution.value >= best - rel * abs(best) - 1e-12 * scale
    assert solution.bound >= best - 1e-12 * scale
    profit = (similarity - solution.prices).max(axis=1)
    if n_a > n_b:
        profit = np.maximum(profit, 0.0)
    elif unmatched is not None:
        profit = np.maximum(profit, unmatched)
    assert profit.sum() + solution.prices.sum() <= solution.bound + 1e-9 * scale
    if rel:
        assert 0 <= solution.gap <= rel
        assert solution.status is Status.OPTIMAL


@cache
def hostile():
    """Instances on which solvers go wrong; each is a pair of ``[n, size]`` tensors."""
    x, y = normal(300, 20, seed=1), normal(300, 20, seed=2)
    twice, zero_x, zero_y = x.clone(), x.clone(), y.clone()
    twice[50:200] = twice[:1]
    same = y.clone()
    same[100:250] = same[:1]
    zero_x[50:200] = 0
    zero_y[125:300] = 0
    tails = torch.exp(3 * normal(300, 1, seed=3)), torch.exp(3 * normal(300, 1, seed=4))
    return {
        "duplicates": (twice, same),
        "zero vectors": (zero_x, zero_y),
        "one zero vector": (x * (torch.arange(300) > 0)[:, None], y),
        "all zero": (x * 0, y * 0),
        "small numbers": (x[:, :1] * 1e-7, y[:, :1] * 1e-7),
        "all equal": (torch.ones(300, 3), torch.ones(300, 3)),
        "rank 1": (normal(300, 1, seed=5), normal(300, 1, seed=6)),
        "rank 2": (normal(300, 2, seed=5), normal(300, 2, seed=6)),
        "one common mean": (x + 30, y + 30),
        "heavy-tailed norms": (x * tails[0], y * tails[1]),
        "negative similarities": (x.abs(), -y.abs()),
        "values that cancel": (torch.cat([x, -x]), torch.cat([y, y])),
        "planted": (planted(301, 40).factors.X_A, planted(301, 40).factors.X_B),
    }


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", hostile())
def test_hostile_instances(name, regime):
    x, y = hostile()[name]
    check(solved(x, y, regime), x, y)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", hostile())
def test_rectangular_either_way_round(name, regime):
    x, y = hostile()[name]
    x = x[: 2 * len(x) // 3]
    check(solved(x, y, regime), x, y)
    check(solved(y, x, regime), y, x)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.5])
@pytest.mark.parametrize("name", ["duplicates", "zero vectors", "rank 2", "planted", "rank 1"])
def test_partial(name, share, regime):
    """Staying out is worth a share of what the best pairs are worth."""
    x, y = hostile()[name]
    unmatched = share * (x @ y.T).amax(1).quantile(0.8).item()
    check(solved(x, y, regime, unmatched=unmatched), x, y, unmatched)


def test_partial_of_two_widths_and_of_negative_similarities():
    x, y = hostile()["planted"]
    for a, b in ((x[:200], y), (x, y[:200])):
        solution = solved(a, b, unmatched=0.3)
        check(solution, a, b, 0.3)
        assert 0 < (solution.columns >= 0).sum() < 200
    x, y = hostile()["negative similarities"]
    check(solved(x, y, unmatched=-9.0), x, y, -9.0)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", hostile())
def test_tolerance_0_is_the_optimum_proven(name, regime):
    for x, y in (hostile()[name], [side[: 200 + 50 * k] for k, side in enumerate(hostile()[name])]):
        solution = solved(x, y, regime, tolerance=0.0)
        check(solution, x, y, rel=1e-13)
        assert solution.gap < 1e-14


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("extra", [0, 2])
def test_brute_force(n, extra):
    x, y = normal(n, 3, seed=n), normal(n + extra, 3, seed=n + 10)
    similarity = (x.double() @ y.double().T).numpy()
    ways = itertools.permutations(range(n + extra), n)
    best = max(similarity[range(n), list(way)].sum() for way in ways)
    assert solved(x, y).value == pytest.approx(best, rel=1e-6)
    assert solved(y, x).value == pytest.approx(best, rel=1e-6)
    best = max(
        sum(similarity[i, j] if j >= 0 else 0.2 for i, j in enumerate(way))
        for way in itertools.product(range(-1, n + extra), repeat=n)
        if all(j < 0 or way.count(j) == 1 for j in way)
    )
    assert solved(x, y, unmatched=0.2).value == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64, 299, 301, 1024])
def test_blocks_of_any_size_give_the_same(rows, monkeypatch):
    x, y = hostile()["planted"]
    whole = solved(x, y)
    monkeypatch.setattr(products, "MOST_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(products, "NUMBERS_AT_ONCE", 3 * rows * len(y))
    for regime in REGIMES:
        assert np.array_equal(solved(x, y, regime).columns, whole.columns)


@pytest.mark.parametrize("n_hot", [1, 2, 301])
def test_short_and_long_lists_give_the_same(n_hot, monkeypatch):
    x, y = hostile()["planted"]
    whole = solved(x, y)
    monkeypatch.setattr(auction, "N_HOT", n_hot)
    for regime in REGIMES:
        assert np.array_equal(solved(x, y, regime).columns, whole.columns)


def test_a_planted_match_comes_back():
    truth = planted(500, 60, persist=1.0, cosine=(0.8, 0.9), seed=3)
    solution = solve_assignment(truth.factors.X_A, truth.factors.X_B)
    assert np.array_equal(solution.columns, truth.columns.numpy())


def test_the_same_twice():
    x, y = hostile()["duplicates"]
    first, second = solved(x, y, "blocks"), solved(x, y, "blocks")
    assert np.array_equal(first.columns, second.columns)
    assert (first.value, first.bound) == (second.value, second.bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_what_they_are_in_float64(dtype):
    x, y = (side.to(dtype) for side in hostile()["planted"])
    check(solved(x, y), x, y)


def test_double_precision_decides_what_single_cannot_see():
    """The two sides differ by 1e-9 of themselves; only float64 tells which pairing is better."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64)
    y = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    solution = solve_assignment(x, y, tolerance=0.0)
    assert solution.columns.tolist() == [1, 0]
    assert solution.gap == 0


def test_arrays_and_strided_input():
    x, y = hostile()["planted"]
    whole = solved(x, y)
    strided = torch.empty(2 * x.shape[1], len(x)).T[:, ::2].copy_(x)
    assert not strided.is_contiguous()
    for a, b in ((x.numpy(), y.numpy()), (strided, y), (x.numpy()[::-1][::-1], y)):
        assert np.array_equal(solve_assignment(a, b).columns, whole.columns)


def test_input_is_left_alone():
    x, y = hostile()["planted"]
    before = x.clone(), y.clone()
    solved(x, y, "blocks")
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.full((3, 2), float("nan")), torch.ones(3, 2), "x_a holds NaN"),
        (torch.ones(3, 2), torch.full((3, 2), float("inf")), "x_b holds NaN or infinite"),
        (torch.ones(3, 2), torch.ones(3, 4), "x_a have 2 numbers, those of x_b 4"),
        (torch.ones(0, 2), torch.ones(3, 2), "at least one"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), "floating-point"),
        (torch.ones(3), torch.ones(3, 2), "one vector"),
        (torch.full((3, 2), 1e20), torch.full((3, 2), 1e20), "too near the ends of float32"),
        (torch.ones(3, 2).double() * 1e40, torch.ones(3, 2).double() * 1e-40, "1e.40 and 1e-40"),
    ],
)
def test_what_makes_no_sense_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        solve_assignment(x.numpy(), y.numpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"unmatched": float("inf")}, "unmatched is inf"),
        ({"time_limit": -1.0}, "time_limit is -1"),
        ({"resources": SolverResources(1e-6, regime="blocks")}, "give memory_gib at least"),
        ({"resources": SolverResources(regime="half")}, "choose one of whole, blocks, device"),
        (
            {"resources": SolverResources(device="cuda", regime="whole")},
            "cannot be used here|uses the CPU",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        solve_assignment(normal(200, 3), normal(200, 3), **settings)


def test_the_least_memory_that_is_named_suffices():
    x, y = hostile()["planted"]
    with pytest.raises(ValueError, match="at least") as refused:
        solve_assignment(x, y, resources=SolverResources(1e-9, "cpu"))
    least = float(str(refused.value).rsplit(" ", 1)[1])
    check(solve_assignment(x, y, resources=SolverResources(least * 1.01, "cpu")), x, y)


def test_the_regime_is_chosen_by_memory():
    x, y = hostile()["planted"]
    budgets = [SolverResources(gib, "cpu") for gib in (1.0, 2e-4)]
    regimes = [solve_assignment(x, y, resources=budget).regime for budget in budgets]
    assert regimes == ["whole", "blocks"]


def test_a_way_out_that_is_worth_nothing_does_not_blur_the_rest():
    x, y = hostile()["planted"]
    for unmatched in (-1e9, -1e12):
        solution = solved(x, y, unmatched=unmatched, tolerance=0.0)
        assert solution.gap < 1e-14
        assert solution.value == pytest.approx(oracle(x, y), rel=1e-13)


def test_reduced_precision_elsewhere_does_not_reach_the_products():
    x, y = (side.repeat(1, 8) for side in hostile()["planted"])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        check(solved(x, y), x, y)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["planted", "heavy-tailed norms"])
@pytest.mark.parametrize("unmatched", [None, 0.1])
@pytest.mark.parametrize("n", [200, 300])
def test_out_of_time(name, unmatched, n):
    """The result is a whole match with a true bound, and its status says that time ran out."""
    x, y = hostile()[name]
    solution = solve_assignment(x[:n], y, unmatched=unmatched, time_limit=0.0)
    best = oracle(x[:n], y, unmatched)
    assert solution.status is Status.TIME_LIMIT
    assert solution.value <= best <= solution.bound
    assert solution.gap > 1e-6
    assert unmatched is not None or (solution.columns >= 0).sum() == n


def test_out_of_time_after_a_stage_takes_that_stage_s_match(monkeypatch):
    x, y = hostile()["planted"]
    clock = itertools.count()
    monkeypatch.setattr(solve.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(solve, "SMALL", 0)
    late = solve_assignment(x, y, time_limit=4.0)
    assert late.status is Status.TIME_LIMIT
    assert late.gap < 0.2


def test_a_solution_is_short_text():
    solution = solve_assignment(np.eye(3), np.eye(4, 3))
    text = "Solution(3 → 4 rows: 3 matched, value 3, gap 0.0e+00, "
    assert repr(solution).startswith(text)
    assert repr(solution).endswith("optimal within the tolerance)")

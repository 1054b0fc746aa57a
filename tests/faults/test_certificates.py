"""Proven properties of a match: its value over chance, the pairs that carry it, certain pairs."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from conftest import random_sae
from matches import partners
from saematch import Match, SolverResources, solve_assignment
from saematch.core.pairs import SaeKey
from saematch.matching.arm import Arm
from saematch.matching.matchers import Greedy, MutualNearest, Optimal, Random, Scipy
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.factors import Factors, by_distance
from saematch.matching.objectives.parts import Parts
from saematch.matching.pairing import FromStarts, Neighbours
from saematch.matching.planted import planted
from saematch.matching.solver.certificate import prove
from saematch.matching.solver.products import Plan, Products, Regime
from saematch.matching.solver.solve import Status
from saematch.matching.store import MatchStore
from saematch.sae.suites import SaeShelf


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(x, y, columns):
    return float((x.double() - y.double()[torch.from_numpy(columns)]).square().sum())


def optimum(x, y):
    """SciPy's permutation, in float64 after each side's mean is subtracted."""
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    return linear_sum_assignment((x @ y.T).numpy(), maximize=True)[1]


@pytest.mark.parametrize("regime", ["whole", "blocks", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_A9_a_common_offset_does_not_change_the_match(regime, dtype):
    x, y = (normal(400, 64, seed=seed).to(dtype) + 1000 for seed in (1, 2))
    resources = SolverResources(device="cpu" if regime == "device" else None, regime=regime)
    solution = solve_assignment(x, y, resources=resources)
    best = optimum(x, y)
    assert np.array_equal(solution.columns, best)
    assert squared_error(x, y, solution.columns) == squared_error(x, y, best)


def test_A9_huge_dead_features_do_not_decide_the_pairs_of_the_living():
    truth = planted(1000, 64)
    x, y = truth.factors.X_A.clone(), truth.factors.X_B.clone()
    dead = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:100]
    x[dead] *= 1000
    y[torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:100]] *= 1000
    solution = solve_assignment(x, y, resources=SolverResources(device="cpu"))
    living = np.ones(1000, bool)
    living[dead.numpy()] = False
    best = linear_sum_assignment((x.double() @ y.double().T).numpy(), maximize=True)[1]
    same = solution.columns == best
    assert same[living].mean() > 0.999
    assert same[solution.certain].all()
    assert solution.certificate.n_90 < 100, "few pairs carry the value, and it is said"


def test_A9_value_bound_and_chance_are_those_of_the_vectors_as_they_are_given():
    x, y = normal(6, 3, seed=1) + 5, normal(6, 3, seed=2) + 5
    similarity = (x.double() @ y.double().T).numpy()
    values = [similarity[range(6), way].sum() for way in itertools.permutations(range(6))]
    solution = solve_assignment(x, y, tolerance=0.0)
    certificate = solution.certificate
    assert certificate.value == pytest.approx(max(values), rel=1e-14)
    assert certificate.bound == pytest.approx(max(values), rel=1e-14)
    assert certificate.chance == pytest.approx(np.mean(values), rel=1e-14)
    profits = (similarity - solution.prices).max(1)
    assert profits.sum() + solution.prices.sum() == pytest.approx(certificate.bound, rel=1e-13)


def test_A9_chance_of_two_widths_is_the_mean_over_all_matches():
    x, y = normal(3, 2, seed=1), normal(5, 2, seed=2)
    similarity = (x.double() @ y.double().T).numpy()
    values = [similarity[range(3), way].sum() for way in itertools.permutations(range(5), 3)]
    for a, b in ((x, y), (y, x)):
        solution = solve_assignment(a, b, tolerance=0.0)
        assert solution.certificate.chance == pytest.approx(np.mean(values), abs=1e-14)
        assert solution.value == pytest.approx(max(values), rel=1e-14)
    partial = solve_assignment(x, y, unmatched=0.1).certificate
    assert (partial.chance, partial.gap_over_chance, partial.n_90) == (None, None, None)


def test_A9_the_gap_over_chance_is_what_a_match_misses_of_what_it_can_win():
    """A worse match and prices of a known bound; an offset changes the relative gap alone."""
    x, y = normal(50, 8, seed=1), normal(50, 8, seed=2)
    similarity = (x.double() @ y.double().T).numpy()
    columns = np.random.default_rng(0).permutation(50)
    value = similarity[np.arange(50), columns].sum()
    bound, chance = similarity.max(1).sum(), similarity.sum() / 50
    products = Products(x, y, Plan(Regime.WHOLE, 50, 16))
    certificate = prove(products, columns, np.zeros(50)).certificate
    gap = (bound - value) / (bound - chance)
    assert certificate.gap_over_chance == pytest.approx(gap, rel=1e-12)
    near, far = (solve_assignment(x + k, y + k, time_limit=0.0) for k in (0, 512))
    assert near.gap_over_chance == pytest.approx(far.gap_over_chance, rel=0.05)
    assert near.gap > 100 * far.gap > 0
    alike = solve_assignment(torch.full((9, 2), 0.3), torch.full((9, 2), 0.7))
    assert (alike.gap_over_chance, alike.certificate.n_90) == (0.0, None)
    assert alike.status is Status.OPTIMAL


@pytest.mark.parametrize("offset", [0.0, 64.0])
def test_A9_n_90_is_how_few_pairs_carry_the_value_above_chance(offset):
    x, y = normal(200, 30, seed=1), normal(200, 30, seed=2)
    x[:10] *= 20
    solution = solve_assignment(x + offset, y + offset)
    parts = (x - x.mean(0)).double() * (y - y.mean(0)).double()[solution.columns]
    carried = np.sort(parts.sum(1).numpy())[::-1].cumsum()
    certificate = solution.certificate
    total = certificate.value - certificate.chance
    assert carried[-1] == pytest.approx(total, rel=1e-5)
    assert certificate.n_90 == np.flatnonzero(carried >= 0.9 * carried[-1])[0] + 1
    assert solve_assignment(x[:150], y).certificate.n_90 < 150


def every_match(n, m, partial):
    """All one-to-one matches of n rows to m columns; -1 for a row that stays out."""
    for way in itertools.product(range(-1 if partial else 0, m), repeat=n):
        used = [j for j in way if j >= 0]
        if len(set(used)) == len(used):
            yield way


@pytest.mark.parametrize(("n", "m", "unmatched"), [(5, 5, None), (3, 6, None), (4, 5, 1.0)])
def test_A9_certain_pairs_are_in_every_optimal_match(n, m, unmatched):
    """Vectors of small integers, so that many matches tie; every optimal one is enumerated."""
    ways = np.array(list(every_match(n, m, unmatched is not None)))
    n_certain = n_shared = 0
    for seed in range(16):
        rng = np.random.default_rng(seed)
        x, y = (torch.from_numpy(rng.integers(-2, 3, (k, 3))).float() for k in (n, m))
        similarity = np.pad((x @ y.T).double().numpy(), ((0, 0), (0, 1)))
        similarity[:, -1] = unmatched or 0.0
        values = similarity[np.arange(n), ways].sum(1)
        optimal = ways[values == values.max()]
        shared = (optimal == optimal[0]).all(0) & (optimal[0] >= 0)
        for tolerance in (0.3, 0.0):
            solution = solve_assignment(x, y, unmatched=unmatched, tolerance=tolerance)
            assert not (solution.certain & ~shared).any()
            assert np.array_equal(solution.columns[solution.certain], optimal[0][solution.certain])
            back = solve_assignment(y, x, unmatched=unmatched, tolerance=tolerance)
            pairs = {(back.columns[j], j) for j in np.flatnonzero(back.certain)}
            assert pairs <= {(i, optimal[0][i]) for i in np.flatnonzero(shared)}
        n_certain, n_shared = n_certain + solution.certain.sum(), n_shared + shared.sum()
    assert n_shared > 16
    assert n_certain > 0.3 * n_shared


def test_A9_all_pairs_of_a_clear_optimum_are_certain():
    x = normal(300, 40)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    solution = solve_assignment(x + 7, x[order] + 7 + 0.1 * normal(300, 40, seed=3))
    assert solution.certain.all()
    assert solution.certificate.certain == 1.0
    assert np.array_equal(order.numpy()[solution.columns], np.arange(300))
    twice = solve_assignment(torch.cat([x, x[:1]]), torch.cat([x, x[:1]]))
    assert twice.certain.sum() == 299, "the two equal features may change pairs"


def test_A9_certain_needs_a_margin_above_the_slack_of_any_match():
    """A match and prices that no solver made: rows are certain only where that is true."""
    x, y = torch.tensor([[9.0], [2.0], [1.0]]), torch.eye(3)[:, :1] * 3
    similarity = (x @ y.T).numpy()
    assert similarity.tolist() == [[27, 0, 0], [6, 0, 0], [3, 0, 0]]
    products = Products(x, y, Plan(Regime.WHOLE, 3, 3))
    best = prove(products, np.array([0, 1, 2]), np.array([10.0, 0, 0]))
    assert (best.slack, best.certain.tolist()) == (0.0, [True, False, False])
    loose = prove(products, np.array([0, 1, 2]), np.array([0.0, 0, 0]))
    assert (loose.slack, loose.certain.tolist()) == (9.0, [True, False, False])
    wrong = prove(products, np.array([1, 0, 2]), np.array([10.0, 0, 0]))
    assert wrong.slack == 21.0
    assert not wrong.certain.any()


def test_A9_certificates_are_kept_with_a_match_and_given_in_the_tables(cli, tmp_path):
    message, output = cli("run_id=a", "logger=none", "evaluations=[]", "arms=[folded,random]")
    assert message is None
    folder = tmp_path / "outputs/match/a"
    results = json.loads((folder / "results.json").read_text())
    rows = {row["arm"]: row for row in results["tables"]["matches"]}
    names = ("value", "bound", "chance", "gap", "gap_over_chance", "n_90", "certain")
    for arm, row in rows.items():
        match, _ = Match.load(folder / f"matches/{arm}/{row['source_layer']}-{row['target_layer']}"
                              ".safetensors")  # fmt: skip
        assert {name: getattr(match.certificate, name) for name in names} == {
            name: row[name] for name in names
        }
    folded, drawn = rows["folded"], rows["random"]
    assert folded["value"] > folded["chance"] == pytest.approx(drawn["chance"], rel=1e-6)
    assert 0 <= folded["gap_over_chance"] <= 1e-6
    assert 0 < folded["n_90"] <= folded["n_matched"]
    assert 0 <= folded["certain"] <= 1
    assert [drawn[name] for name in names[3:]] == [None] * 4
    gaps = [r["gap_over_chance"] for r in results["tables"]["matches"] if r["arm"] == "folded"]
    assert results["metrics"]["optimal_to/folded"] == max(gaps)
    assert "of its pairs are in every optimal match" in output.out


ASSIGNMENTS = (Optimal(tolerance=0.0), Scipy(), Greedy(), MutualNearest())


def widths(n_source, n_target, offset=0.0):
    """SAEs of two widths in units of 1/64, so that an offset is added without rounding."""
    saes = [random_sae(k, 3, n) for k, n in enumerate((n_source, n_target))]
    parts = ("W_enc", "W_dec", "b_enc")
    exact = [{p: (getattr(sae, p) * 64).round() / 64 + offset for p in parts} for sae in saes]
    return [replace(sae, **values) for sae, values in zip(saes, exact, strict=True)]


def distances(earlier, later):
    """Squared distances of all pairs of features, over decoder, encoder and bias."""
    a, b = (
        torch.cat([sae.W_dec, sae.W_enc.T, sae.b_enc[:, None]], 1).double()
        for sae in (earlier, later)
    )
    return (a[:, None] - b[None]).square().sum(-1).numpy()


@pytest.mark.parametrize("offset", [0.0, 512.0])
@pytest.mark.parametrize(("n_source", "n_target"), [(4, 7), (7, 4)])
def test_A9_layers_of_two_widths_get_the_least_squared_error(n_source, n_target, offset):
    """Long vectors of the wider layer are not preferred; a common offset changes nothing."""
    earlier, later = widths(n_source, n_target)
    error = distances(earlier, later)
    of_narrow = error if n_source < n_target else error.T
    ways = [list(way) for way in itertools.permutations(range(7), 4)]
    best = min(ways, key=lambda way: of_narrow[range(4), way].sum())
    factors = Parts().factors(*widths(n_source, n_target, offset))
    for assignment in ASSIGNMENTS[:2]:
        match = assignment(factors)
        if n_source > n_target:
            match = match.inverse()
        assert partners(match).tolist() == best
        least = of_narrow[range(4), best].sum()
        assert match.certificate.value == pytest.approx(-least / 2, rel=1e-6)
        assert match.certificate.chance == pytest.approx(-of_narrow.mean() * 2, rel=1e-6)


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda each: type(each).__name__)
def test_A9_every_assignment_compares_layers_of_two_widths_by_distance(assignment):
    near, far = (Parts().factors(*widths(40, 60, offset)) for offset in (0.0, 512.0))
    match = assignment(near)
    assert torch.equal(partners(match), partners(assignment(far)))
    error = distances(*widths(40, 60))
    if isinstance(assignment, MutualNearest):
        forth, back = error.argmin(1), error.argmin(0)
        expected = np.where(back[forth] == np.arange(40), forth, -1)
        assert partners(match).tolist() == expected.tolist()
    if isinstance(assignment, Greedy):
        assert divmod(int(error.argmin()), 60) != (0, 0)
        i, j = divmod(int(error.argmin()), 60)
        assert partners(match)[i] == j


def test_A9_layers_of_one_width_keep_the_paper_s_inner_products():
    a, b = random_sae(0), random_sae(1)
    factors = Parts().factors(a, b)
    similarity = a.W_dec @ b.W_dec.T + a.W_enc.T @ b.W_enc + a.b_enc[:, None] * b.b_enc
    torch.testing.assert_close(factors.X_A @ factors.X_B.T, similarity)


def test_A17_random_matches_differ_between_pairs_of_a_run_and_repeat(tmp_path):
    saes = {SaeKey("default", k): random_sae(k, layer=k) for k in range(4)}
    saes |= {SaeKey("other", k): random_sae(k + 10, layer=k) for k in range(2)}
    arms = {
        "random": Arm("threshold", Parts(), Random(0)),
        "folded_otherwise": Arm("decoder_norm", Parts(), Random(0)),
        "composed": Arm("threshold", Parts(), Random(0), compose=True),
        "other_seed": Arm("threshold", Parts(), Random(1)),
    }
    pairs = (
        *FromStarts([0, 1, 2])({"default": range(4)}),
        *Neighbours()({"other": range(2)}),
    )

    def hashes(name):
        folder = tmp_path / name
        return match_pairs(saes, pairs, arms, MatchStore(folder / "cache"), folder).hashes

    first, again = hashes("first"), hashes("again")
    assert first == again == hashes("first"), "solved, solved elsewhere and read"
    drawn = [h for arm in ("random", "other_seed") for h in first[arm].values()]
    assert len(set(drawn)) == len(drawn) == 2 * 7
    assert first["random"] == first["folded_otherwise"], "of the pair, not of its vectors"
    steps = [first["composed"][pair] == first["random"][pair] for pair in pairs]
    assert steps == [pair.target.layer - pair.source.layer == 1 for pair in pairs]


def test_A17_the_pair_has_the_same_name_in_any_folder_and_another_for_other_weights():
    a, b = random_sae(0), random_sae(1, layer=1)
    pair = Parts().factors(a, b).pair
    moved = replace(a, origin=replace(a.origin, release="/another/folder"))
    assert Parts().factors(moved, b).pair == pair
    changed = replace(a, origin=replace(a.origin, revision="sha256:1"))
    assert Parts().factors(changed, b).pair != pair
    unnamed = Factors(normal(30, 2), normal(30, 2))
    named = replace(unnamed, pair="3 -> 4")
    assert torch.equal(Random(1)(unnamed).columns, Random(1)(unnamed).columns)
    assert not torch.equal(Random(1)(unnamed).columns, Random(1)(named).columns)
    arm = Arm("threshold", Parts(), Random(5))
    saes = SaeShelf.of({SaeKey("default", 0): a, SaeKey("default", 1): b})
    assert saes[SaeKey("default", 0)] is a
    assert torch.equal(arm.match(a, b).columns, Random(5)(Parts().factors(a, b)).columns)


@pytest.mark.parametrize("tolerance", ["inf", "nan", "-1.0"])
def test_B16_a_tolerance_that_is_no_gap_is_refused_by_name(tolerance, cli):
    message, _ = cli(f"matcher.tolerance={tolerance}", "logger=none", "run_id=a")
    assert "tolerance" in message
    assert tolerance.removesuffix(".0") in message
    assert "Traceback" not in message
    with pytest.raises(ValueError, match="tolerance"):
        solve_assignment(normal(4, 2), normal(4, 2), tolerance=float(tolerance))


@pytest.mark.parametrize("longer", [1.0, 1e4])
def test_A9_two_widths_are_certified_for_the_vectors_and_not_for_rounded_ones(longer):
    a, b = normal(30, 64, seed=3), normal(40, 64, seed=4)
    b[:30] = a + 1e-3 * b[:30]
    a[:3], b[:3] = longer * a[:3], longer * b[:3]
    squared = (a.double()[:, None] - b.double()).square().sum(2).numpy()
    rows, columns = linear_sum_assignment(squared)
    least = squared[rows, columns].sum()
    certificate = Optimal(tolerance=0.0)(by_distance(Factors(a, b))).certificate
    assert -2 * certificate.value == pytest.approx(least, rel=1e-6)
    assert -2 * certificate.bound <= least * (1 + 1e-9)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matches import (
    dense,
    matches,
    of_dense,
    partners,
    permutation,
    permutations,
    transported,
    untimed,
)
from saematch.core.errors import InputError
from saematch.core.match import Certificate, InvalidMatch, Match

CERTIFICATE = Certificate(2.0, 2.5, 0.5, 0.25, 1, 0.5)


def test_the_worked_example_of_the_direction():
    match = Match.from_columns(torch.tensor([2, 0, 1]), 3)
    assert transported(match, torch.tensor([[10.0, 20.0, 30.0]])).tolist() == [[20.0, 30.0, 10.0]]
    assert match.is_permutation


@untimed
@given(st.data(), matches() | permutations())
def test_compose_is_the_product_of_the_matrices(data, first):
    second = data.draw(matches(n=first.n_target) | permutations(first.n_target))
    composed = first.compose(second)
    expected = dense(first) @ dense(second)
    torch.testing.assert_close(dense(composed), expected, rtol=1e-12, atol=1e-12)
    assert (composed.weights != 0).all()
    assert composed.dropped == 0.0
    if first.is_permutation and second.is_permutation:
        assert torch.equal(composed.columns, second.columns[first.columns])
        assert composed.is_permutation


@untimed
@given(st.data(), matches(), st.integers(1, 3))
def test_composition_keeps_the_largest_weights_of_each_row(data, first, most):
    second = data.draw(matches(n=first.n_target))
    product, kept = first.compose(second), first.compose(second, most)
    weights = dense(product)
    expected = torch.zeros_like(weights)
    for i, row in enumerate(weights):  # of equal weights the first columns
        largest = sorted(range(len(row)), key=lambda j, row=row: (-abs(row[j]), j))[:most]
        expected[i, largest] = row[largest]
    assert torch.equal(dense(kept), expected)
    mass = weights.abs().sum()
    lost = (weights - expected).abs().sum()
    assert kept.dropped == pytest.approx((lost / mass).item() if mass else 0.0, abs=1e-12)


def test_dropped_mass_adds_up_over_a_chain_and_is_kept(tmp_path):
    spread = of_dense(torch.tensor([[0.5, 0.25, 0.25]]))
    shuffle = Match.from_columns(torch.tensor([2, 0, 1]), 3)
    once = spread.compose(shuffle, most=2)
    assert once.columns.tolist() == [0, 2]
    assert once.weights.tolist() == [0.25, 0.5]
    assert once.dropped == 0.25
    twice = once.compose(shuffle, most=1)  # keeps 1/2 of 3/4
    assert twice.columns.tolist() == [1]
    assert twice.dropped == pytest.approx(1 - 0.75 * (0.5 / 0.75))
    assert twice.inverse().dropped == twice.dropped
    twice.save(tmp_path / "m.safetensors")
    assert Match.load(tmp_path / "m.safetensors")[0].dropped == twice.dropped


@untimed
@given(matches() | permutations())
def test_the_inverse_is_the_transpose_with_the_same_weights(match):
    assert torch.equal(dense(match.inverse()), dense(match).T)
    again = match.inverse().inverse()
    for name in ("rows", "columns", "weights"):
        assert torch.equal(getattr(again, name), getattr(match, name))
    if match.is_permutation:
        assert torch.equal(match.compose(match.inverse()).columns, torch.arange(match.n_source))


@untimed
@given(matches())
def test_matched_features_are_the_rows_with_an_entry(match):
    n_entries = (dense(match) != 0).sum(dim=1)
    assert match.matched.tolist() == torch.nonzero(n_entries).flatten().tolist()
    assert match.one_partner == bool((n_entries <= 1).all())


def test_partial_matches_lose_features_and_compose():
    first = Match.from_columns(torch.tensor([1, -1, 0]), 2)
    second = Match.from_columns(torch.tensor([-1, 3]), 4)
    assert transported(first, torch.tensor([[5.0, 6.0, 7.0]])).tolist() == [[7.0, 5.0]]
    assert partners(first.compose(second)).tolist() == [3, -1, -1]
    assert not first.is_permutation


def test_matches_of_sizes_that_do_not_fit_are_not_composed():
    with pytest.raises(ValueError, match="has 5 features, the source of the second has 4"):
        permutation(0, 5).compose(permutation(0, 4))


def test_agreement_is_recall_of_the_other():
    truth = Match.from_columns(torch.tensor([2, 0, -1, 1]), 4)
    match = Match.from_columns(torch.tensor([2, 1, 3, 0]), 4)
    assert match.agreement(truth) == pytest.approx(1 / 3)
    assert truth.agreement(truth) == 1.0


def test_saving_and_loading_gives_the_same(tmp_path):
    match = Match.from_columns(torch.tensor([1, -1, 0]), 5, CERTIFICATE)
    match.save(tmp_path / "m" / "0-1.safetensors", {"key": "k"})
    loaded, facts = Match.load(tmp_path / "m" / "0-1.safetensors")
    assert facts == {"key": "k"}
    assert torch.equal(loaded.rows, match.rows)
    assert torch.equal(loaded.columns, match.columns)
    assert (loaded.n_source, loaded.n_target, loaded.certificate) == (3, 5, CERTIFICATE)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["0-1.safetensors"]


def test_a_cut_off_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    permutation(0, 50).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a whole match file"):
        Match.load(path)


@pytest.mark.parametrize(
    ("rows", "columns"), [([0, 0], [1, 1]), ([1, 0], [0, 1]), ([0, 5], [0, 1]), ([0, 1], [-1, 0])]
)
def test_entries_out_of_order_or_range_are_refused(rows, columns):
    with pytest.raises(ValueError, match="match"):
        Match(torch.tensor(rows), torch.tensor(columns), torch.ones(2, dtype=torch.float64), 3, 3)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(InvalidMatch, match="1 weights of a match are NaN or infinite"):
        Match(torch.tensor([0, 1]), torch.tensor([0, 1]),
              torch.tensor([1.0, weight], dtype=torch.float64), 2, 2)  # fmt: skip


def test_weights_of_another_type_are_refused():
    index = torch.arange(2)
    with pytest.raises(InvalidMatch, match=r"weights float64, .* torch\.float32 on cpu$"):
        Match(index, index, torch.ones(2), 2, 2)


def test_gap_by_hand():
    assert Certificate(9.0, 10.0).gap == pytest.approx(0.1)
    assert Certificate(10.0, 10.0 - 1e-13).gap == 0.0
    assert Certificate(0.0, 0.0).gap == 0.0
    assert Certificate(1.0, None).gap is None
    assert Certificate(1.0, 2.0).optimal_to == 0.5
    assert Certificate(1.0, 2.0, 0.0, 0.25).optimal_to == 0.25


def test_scores_follow_their_entries(tmp_path):
    rows, columns = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])
    weights, scores = torch.ones(3).double(), torch.tensor([0.5, 0.25, 2.0]).double()
    match = Match(rows, columns, weights, 3, 4, scores=scores)
    assert match.inverse().scores.tolist() == [2.0, 0.5, 0.25]
    assert match.keep(scores < 1).scores.tolist() == [0.5, 0.25]
    match.save(tmp_path / "m.safetensors")
    assert torch.equal(Match.load(tmp_path / "m.safetensors")[0].scores, scores)
    assert match.hash == Match(rows, columns, weights, 3, 4).hash
    assert match.compose(Match.from_columns(torch.arange(4), 4)).scores is None
    with pytest.raises(InvalidMatch, match="one float64 score for each entry"):
        Match(rows, columns, weights, 3, 4, scores=scores.float())


def test_length_equality_and_tables_of_matches():
    match = Match(
        torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0]),
        torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64), 3, 3,
        scores=torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64),
    )  # fmt: skip
    assert len(match) == 3
    assert match == match.inverse().inverse()
    assert match != match.inverse()
    assert match != "match"
    assert len({match, match.inverse().inverse()}) == 1
    assert match.to_pandas().to_dict("list") == {
        "source_feature": [0, 0, 2], "target_feature": [1, 2, 0], "weight": [0.25, 0.75, 1.0],
        "score": [1.0, 3.0, 2.0],
    }  # fmt: skip
    assert "score" not in Match.from_columns(torch.tensor([1, 0]), 2).to_pandas()


def test_representations_are_short():
    columns = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    match = Match.from_columns(columns, 100, Certificate(9.0, 9.9, 0.0, 0.1))
    assert repr(match) == (
        "Match(100 → 100 features: 100 of 100 features matched, one partner, proven optimal to "
        "1.0e-01)"
    )
    optimal = Match.from_columns(columns, 100, Certificate(9.0, 9.0, 0.0, 0.0))
    assert repr(optimal).endswith("one partner, proven optimal)")
    assert match._repr_html_().count("<tr") == 12  # the head, ten rows and a gap


def test_paths_may_be_text(tmp_path):
    match = Match.from_columns(torch.tensor([1, 0]), 2)
    match.save(f"{tmp_path}/a.safetensors")
    assert Match.load(f"{tmp_path}/a.safetensors")[0] == match


def test_html_of_a_certificate_has_the_known_values():
    html = Certificate(9.0, 10.0, 0.0, 0.1)._repr_html_()
    assert "<th>gap_over_chance</th>" in html
    assert "<td>0.1</td>" in html
    assert "n_90" not in html


def test_other_values_than_matches_are_refused():
    match = Match.from_columns(torch.arange(3), 3)
    for use in (match.compose, match.agreement):
        with pytest.raises(InputError, match="expected a Match, not a value of class int"):
            use(3)

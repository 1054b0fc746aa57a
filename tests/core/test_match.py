import pytest
import torch

from saematch.core.match import Certificate, Match

CERTIFICATE = Certificate(2.0, 2.5, 0.5, 0.25, 1, 0.5)


def permutation(seed, n):
    return Match.from_columns(torch.randperm(n, generator=torch.Generator().manual_seed(seed)), n)


def test_the_worked_example_of_the_direction():
    match = Match.from_columns(torch.tensor([2, 0, 1]), 3)
    assert match.apply(torch.tensor([10.0, 20.0, 30.0])).tolist() == [20.0, 30.0, 10.0]
    assert match.is_permutation


def test_apply_is_the_matrix_product():
    match = permutation(0, 7)
    x = torch.randn(2, 3, 7)
    dense = torch.zeros(7, 7)
    dense[match.rows, match.columns] = 1
    torch.testing.assert_close(match.apply(x), x @ dense)


def test_inverse_undoes_apply():
    match, x = permutation(1, 9), torch.randn(4, 9)
    assert torch.equal(match.inverse().apply(match.apply(x)), x)
    assert torch.equal(match.inverse().inverse().columns, match.columns)


def test_compose_is_apply_after_apply():
    first, second = permutation(2, 8), permutation(3, 8)
    x = torch.randn(5, 8)
    composed = first.compose(second)
    torch.testing.assert_close(composed.apply(x), second.apply(first.apply(x)))
    assert torch.equal(composed.columns, second.columns[first.columns])
    identity = first.compose(first.inverse())
    assert torch.equal(identity.columns, torch.arange(8))


def test_partial_matches_lose_features_and_compose():
    first = Match.from_columns(torch.tensor([1, -1, 0]), 2)
    second = Match.from_columns(torch.tensor([-1, 3]), 4)
    assert first.apply(torch.tensor([5.0, 6.0, 7.0])).tolist() == [7.0, 5.0]
    assert first.compose(second).partners().tolist() == [3, -1, -1]
    assert not first.is_permutation


def test_many_to_one_sums_and_has_no_single_inverse_partner():
    match = Match.from_columns(torch.tensor([0, 0, 1]), 2)
    assert match.apply(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="several partners"):
        match.inverse().partners()


def test_agreement_is_recall_of_the_other():
    truth = Match.from_columns(torch.tensor([2, 0, -1, 1]), 4)
    found = Match.from_columns(torch.tensor([2, 1, 3, 0]), 4)
    assert found.agreement(truth) == pytest.approx(1 / 3)
    assert truth.agreement(truth) == 1.0


def test_saving_and_loading_gives_the_same(tmp_path):
    match = Match.from_columns(torch.tensor([1, -1, 0]), 5, CERTIFICATE)
    match.save(tmp_path / "m" / "0-1.safetensors", {"key": "k"})
    loaded, about = Match.load(tmp_path / "m" / "0-1.safetensors")
    assert about == {"key": "k"}
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


def test_gap_by_hand():
    assert Certificate(9.0, 10.0).gap == pytest.approx(0.1)
    assert Certificate(10.0, 10.0 - 1e-13).gap == 0.0
    assert Certificate(0.0, 0.0).gap == 0.0
    assert Certificate(1.0, None).gap is None
    assert Certificate(1.0, 2.0).optimal_to == 0.5
    assert Certificate(1.0, 2.0, 0.0, 0.25).optimal_to == 0.25

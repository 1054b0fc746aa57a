import numpy as np
import pytest
import scipy.optimize
import torch

from saematch.matching import nonnegative
from saematch.matching.blocks import largest_of_rows
from saematch.matching.nonnegative import fit_largest
from saematch.matching.objectives.factors import Factors


def nonnegative_fit(vectors, atoms, most):
    correlation = torch.einsum("nad,nd->na", atoms, vectors)
    return nonnegative.nonnegative_fit(atoms @ atoms.mT, correlation, most)


@pytest.mark.parametrize(("n_atoms", "size"), [(1, 1), (5, 3), (20, 40), (40, 12)])
def test_with_all_atoms_the_fit_equals_scipy_s(n_atoms, size):
    g = torch.Generator().manual_seed(n_atoms)
    common = torch.randn(size, generator=g)  # makes atoms alike, so that coefficients turn negative
    vectors = common + torch.randn(30, size, generator=g)
    atoms = common + torch.randn(30, n_atoms, size, generator=g)
    ours = nonnegative_fit(vectors, atoms, n_atoms).numpy()
    assert (ours >= 0).all()
    for row, (vector, own) in enumerate(zip(vectors.double(), atoms.double(), strict=True)):
        expected, error = scipy.optimize.nnls(own.numpy().T, vector.numpy())
        assert np.linalg.norm(vector.numpy() - ours[row] @ own.numpy()) == pytest.approx(
            error, abs=1e-4
        )
        if n_atoms <= size:
            np.testing.assert_allclose(ours[row], expected, atol=1e-4)


def test_equal_atoms_atoms_of_zero_and_vectors_of_zero():
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-1.0, -1.0]]).expand(3, 4, 2)
    vectors = torch.tensor([[2.0, 5.0], [0.0, 0.0], [-1.0, -3.0]])
    fit = nonnegative_fit(vectors, atoms, 4)
    assert fit[0].sum() == pytest.approx(2.0) and fit[0, 2:].tolist() == [0.0, 0.0]
    assert not fit[1].any()
    assert (fit[2, :2].sum().item(), fit[2, 3].item()) == pytest.approx((2.0, 3.0))


def test_chunks_change_nothing(monkeypatch):
    g = torch.Generator().manual_seed(0)
    vectors, parts = torch.randn(50, 8, generator=g), torch.randn(30, 8, generator=g)
    largest = largest_of_rows(Factors(vectors, parts), 6, "test")
    whole = fit_largest(vectors, parts, largest, 3)
    monkeypatch.setattr(nonnegative, "NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(fit_largest(vectors, parts, largest, 3), whole)
    assert ((whole > 0).sum(1) <= 3).all()
    assert not whole[largest.values <= 0].any()

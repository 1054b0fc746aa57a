import pytest
import torch

from conftest import random_sae
from saematch.matching.objectives.parts import Parts


@pytest.mark.parametrize(
    "parts",
    [Parts(), Parts(1.0, 0.0, 0.0), Parts(0.0, 1.0, 1.0), Parts(W_dec=2.0, W_enc=0.5, b_enc=3.0)],
)
def test_squared_distance_of_the_vectors_is_the_objective(parts):
    """Equation 3, with weights: the joined vectors' squared distance is the weighted sum."""
    a, b = random_sae(0), random_sae(1)
    f = parts.factors(a, b)
    i, j = 3, 7
    expected = (
        parts.W_dec * (a.W_dec[i] - b.W_dec[j]).square().sum()
        + parts.W_enc * (a.W_enc[:, i] - b.W_enc[:, j]).square().sum()
        + parts.b_enc * (a.b_enc[i] - b.b_enc[j]).square()
    )
    torch.testing.assert_close((f.X_A[i] - f.X_B[j]).square().sum(), expected)


def test_a_part_of_weight_zero_takes_no_room():
    a, b = random_sae(0), random_sae(1)
    assert Parts(1.0, 0.0, 0.0).factors(a, b).X_A.shape == (24, 16)
    assert Parts().factors(a, b).X_A.shape == (24, 33)

import dataclasses

import pytest
import torch

from conftest import random_sae


def test_encode_by_hand_is_strict_at_the_threshold():
    sae = random_sae(0, d_model=1, n_features=4)
    sae = dataclasses.replace(
        sae,
        W_enc=torch.ones(1, 4),
        b_enc=torch.zeros(4),
        threshold=torch.tensor([0.5, 1.0, 2.0, 0.9]),
    )
    assert torch.equal(sae.encode(torch.tensor([[1.0]])), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))


def test_relu_has_no_threshold():
    sae = random_sae(0, d_model=1, n_features=2)
    sae = dataclasses.replace(
        sae,
        W_enc=torch.tensor([[1.0, -1.0]]),
        b_enc=torch.zeros(2),
        threshold=None,
        activation="relu",
    )
    assert torch.equal(sae.encode(torch.tensor([[2.0]])), torch.tensor([[2.0, 0.0]]))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_nan_is_refused_and_named(name):
    sae = random_sae(1)
    tensor = getattr(sae, name).clone()
    tensor.view(-1)[3] = float("nan")
    with pytest.raises(ValueError, match=f"SAE random/1: {name} holds 1 values"):
        dataclasses.replace(sae, **{name: tensor})


def test_activation_and_threshold_go_together():
    sae = random_sae(1)
    with pytest.raises(ValueError, match="not one of jumprelu, relu"):
        dataclasses.replace(sae, activation="gelu")
    with pytest.raises(ValueError, match="has thresholds"):
        dataclasses.replace(sae, threshold=None)

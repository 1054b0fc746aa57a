import dataclasses

import pytest
import torch

from conftest import random_sae
from saematch.core.errors import InputError
from saematch.sae.params import TENSORS


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


def topk(**options):
    sae = random_sae(0, d_model=1, n_features=4)
    return dataclasses.replace(
        sae,
        W_enc=torch.tensor([[3.0, 1.0, -2.0, 2.0]]),
        b_enc=torch.zeros(4),
        threshold=None,
        activation="topk",
        **options,
    )


@pytest.mark.parametrize(
    ("x", "scale", "features"),
    [
        (1.0, None, [3.0, 0.0, 0.0, 2.0]),
        (1.0, [1.0, 4.0, 9.0, 1.0], [3.0, 1.0, 0.0, 0.0]),  # ranks 3, 4, 0, 2
        (-1.0, None, [0.0, 0.0, 2.0, 0.0]),  # one alone is positive
    ],
)
def test_topk_by_hand(x, scale, features):
    sae = topk(k=2, rank_scale=None if scale is None else torch.tensor(scale))
    assert torch.equal(sae.encode(torch.tensor([[x]])), torch.tensor([features]))


def test_what_goes_with_topk_and_with_a_stand_in():
    for wrong in ({}, {"k": 0}, {"k": 5}, {"k": 2, "rank_scale": torch.tensor([1.0, 1, 0, 1])}):
        with pytest.raises(ValueError, match=r"have k and may|k=0 must|k=5 must|must be positive"):
            topk(**wrong)
    with pytest.raises(ValueError, match="only they, have k"):
        dataclasses.replace(random_sae(1), k=3)
    with pytest.raises(ValueError, match="go together"):
        dataclasses.replace(random_sae(1), stand_in=torch.ones(24))


def test_every_tensor_moves():
    origin = dataclasses.replace(random_sae(0).origin, stand_in_name="made up")
    sae = topk(k=2, rank_scale=torch.ones(4), stand_in=torch.ones(4), origin=origin)
    moved = sae.to("cpu", torch.float64)
    held = [getattr(moved, name) for name in TENSORS]
    assert {t.dtype for t in held if t is not None} == {torch.float64}
    assert len([t for t in held if t is not None]) == 6


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_nan_is_refused_and_named(name):
    sae = random_sae(1)
    tensor = getattr(sae, name).clone()
    tensor.view(-1)[3] = float("nan")
    with pytest.raises(ValueError, match=f"SAE random/1: {name} holds 1 values"):
        dataclasses.replace(sae, **{name: tensor})


def test_activation_and_threshold_go_together():
    sae = random_sae(1)
    with pytest.raises(ValueError, match="not one of jumprelu, relu, topk"):
        dataclasses.replace(sae, activation="gelu")
    with pytest.raises(ValueError, match="and only they, have thresholds"):
        dataclasses.replace(sae, threshold=None)


def test_representation_is_one_short_line():
    sae = random_sae(0, d_model=1, n_features=4)
    release = sae.origin.release
    assert repr(sae) == (
        f"SaeParams(layer {sae.origin.layer} of {release}: 4 features, d_model 1, jumprelu)"
    )
    with_stand_in = dataclasses.replace(
        topk(k=2),
        stand_in=torch.ones(4),
        origin=dataclasses.replace(sae.origin, stand_in_name="ones"),
    )
    assert repr(with_stand_in).endswith("topk with k=2, stand-in ones)")


def test_the_name_of_a_device_that_is_missing_is_refused(monkeypatch):
    sae = random_sae(0)
    assert sae.to("cpu").W_enc.device.type == "cpu"
    with pytest.raises(InputError, match="device='gpu' is not the name of a device"):
        sae.to("gpu")
    with pytest.raises(InputError, match="device='cuda:99' cannot be used here"):
        sae.to("cuda:99")

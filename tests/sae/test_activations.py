import dataclasses

import pytest
import torch

from conftest import random_sae
from saematch.sae import activations
from saematch.sae.activations import decode, encode


@pytest.fixture
def x():
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 7, 50, 51])
def test_sparse_equals_dense_at_every_block_size(x, rows, monkeypatch):
    sae = random_sae(0)
    monkeypatch.setattr(activations, "ENCODE_CHUNK", rows * sae.n_features)
    active = encode(sae, x)
    features = sae.encode(x)
    assert torch.equal(active.dense(), features > 0)
    assert active.n_tokens == 50
    torch.testing.assert_close(decode(sae, active), sae.decode(features))


def test_tokens_without_an_active_feature_decode_to_the_bias():
    sae = random_sae(0)
    silent = dataclasses.replace(sae, threshold=torch.full_like(sae.threshold, 1e3))
    active = encode(silent, torch.ones(3, 16))
    assert active.n_tokens == 3
    assert torch.equal(decode(silent, active), sae.b_dec.expand(3, 16))
    x = torch.zeros(3, 16)
    x[1] = 2e3  # only the token in the middle has active features
    active = encode(silent, x)
    assert set(active.tokens().tolist()) == {1}
    torch.testing.assert_close(decode(silent, active), silent.reconstruct(x))

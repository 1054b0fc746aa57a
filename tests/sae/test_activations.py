import dataclasses

import pytest
import torch

from conftest import random_sae
from saematch.core.match import Match
from saematch.matching.transport import carry
from saematch.sae import activations
from saematch.sae.activations import decode, encode
from saematch.sae.folding import fold, fold_scale


@pytest.fixture
def x():
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 7, 50, 51])
def test_sparse_equals_dense_at_every_block_size(x, rows, monkeypatch):
    sae = random_sae(0)
    monkeypatch.setattr(activations, "ENCODE_CHUNK", rows * sae.n_features)
    active = encode(sae, x)
    dense = sae.encode(x)
    assert torch.equal(active.dense(), dense > 0)
    assert active.n_tokens == 50
    torch.testing.assert_close(decode(sae, active), sae.decode(dense))


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


@pytest.mark.parametrize("by", ["threshold", "decoder_norm"])
def test_carrying_is_encode_permute_decode_on_folded_saes(x, by):
    """Equation 5 with dense matrices on SAEs folded beforehand."""
    a, b = random_sae(1), random_sae(2)
    match = Match.from_columns(torch.randperm(24, generator=torch.Generator().manual_seed(3)), 24)
    a_folded, b_folded = fold(a, by), fold(b, by)
    expected = b_folded.decode(match.apply(a_folded.encode(x)))
    carried = carry(encode(a, x), match, fold_scale(a, by), fold_scale(b, by))
    torch.testing.assert_close(decode(b, carried), expected)


def test_features_without_a_partner_are_lost(x):
    a, b = random_sae(1), random_sae(2)
    columns = torch.arange(24)
    columns[::2] = -1
    match = Match.from_columns(columns, 24)
    ones = torch.ones(24)
    expected = b.decode(match.apply(a.encode(x)))
    torch.testing.assert_close(decode(b, carry(encode(a, x), match, ones, ones)), expected)

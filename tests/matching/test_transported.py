"""Decoder and encoder vectors in the basis of a later layer."""

from dataclasses import replace

import torch

from conftest import random_sae
from saematch.matching.arm import Arm
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.transported import transported
from saematch.sae.folding import fold


def jacobian_of(seed, d=16):
    return torch.randn(d, d, generator=torch.Generator().manual_seed(seed)).double()


def test_products_of_encoder_and_decoder_vectors_stay():
    sae, J = random_sae(0), jacobian_of(1)
    moved = transported(sae, J)
    torch.testing.assert_close(moved.W_dec.double(), sae.W_dec.double() @ J.T)
    before, after = sae.W_dec @ sae.W_enc, moved.W_dec @ moved.W_enc
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert torch.equal(moved.b_enc, sae.b_enc)
    assert torch.equal(moved.threshold, sae.threshold)
    assert moved.origin == sae.origin


def test_a_singular_jacobian_keeps_products_in_its_row_space(caplog):
    sae, J = random_sae(0), jacobian_of(1)
    J[0] = J[1] + J[2]
    moved = transported(sae, J)
    kept = torch.linalg.pinv(J) @ J
    expected = sae.W_dec.double() @ kept.T @ sae.W_enc.double()
    torch.testing.assert_close((moved.W_dec @ moved.W_enc).double(), expected, rtol=1e-3, atol=1e-4)
    assert "is singular, so encoder vectors are transported by its pseudo-inverse" in caplog.text


def test_an_sae_is_transported_before_it_is_folded():
    source, target, J = random_sae(0), random_sae(1), jacobian_of(1)
    arm = Arm("decoder_norm", DecoderCosine(), TopK(3), transported=True)
    factors = arm.similarity(source, target, J)
    moved = fold(transported(source, J), "decoder_norm")
    torch.testing.assert_close(factors.X_A, moved.W_dec)
    torch.testing.assert_close(moved.W_dec.norm(dim=1), torch.ones(24))
    plain = replace(arm, transported=False).similarity(source, target)
    assert torch.equal(plain.X_B, factors.X_B), "the target stays"

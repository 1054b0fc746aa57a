"""Transport against its definition on dense matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_sae
from matches import dense, halves, matches, permutation, permutations, soft, transported, untimed
from saematch.core.match import Match
from saematch.matching.transport import transport
from saematch.sae.activations import decode, encode
from saematch.sae.folding import fold, fold_scale


@untimed
@given(matches() | permutations(), st.integers(0, 2**31))
def test_transport_is_its_definition(match, seed):
    """``f_target[j] = s_target[j] * sum_i w_ij f_source[i] / s_source[i]``."""
    g = torch.Generator().manual_seed(seed)
    features = torch.rand(5, match.n_source, generator=g).sub(0.4).relu()
    source, target = (torch.rand(n, generator=g) + 0.5 for n in (match.n_source, match.n_target))
    expected = target * ((features / source).double() @ dense(match)).float()
    actual = transported(match, features, source, target)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@untimed
@given(st.data(), matches() | permutations())
def test_transport_through_a_composition_is_one_transport_after_another(data, first):
    second = data.draw(matches(n=first.n_target))
    features = torch.eye(first.n_source)
    step_by_step = transported(second, transported(first, features))
    composed = transported(first.compose(second), features)
    torch.testing.assert_close(composed, step_by_step, rtol=1e-4, atol=1e-5)


def test_the_inverse_of_a_permutation_undoes_transport():
    match, features = permutation(1, 9), torch.rand(4, 9)
    assert torch.equal(transported(match.inverse(), transported(match, features)), features)


MATCHES = {
    "permutation": permutation(3),
    "partial": Match.from_columns(torch.where(torch.arange(24) % 2 == 0, -1, 3), 24),
    "halves": halves(),
    "soft": soft(4, gone=(0, 5)),
    "nothing": Match.from_columns(torch.full((24,), -1), 24),
}


@pytest.mark.parametrize("by", ["threshold", "decoder_norm"])
@pytest.mark.parametrize("name", MATCHES)
def test_it_is_encode_permute_decode_on_folded_saes(by, name):
    """Equation 5 with dense matrices on SAEs folded beforehand."""
    a, b, match = random_sae(1), random_sae(2), MATCHES[name]
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    x[7] = -a.b_dec  # tokens with few or no active features
    a_folded, b_folded = fold(a, by), fold(b, by)
    expected = b_folded.decode((a_folded.encode(x).double() @ dense(match)).float())
    moved = transport(encode(a, x), match, fold_scale(a, by), fold_scale(b, by))
    torch.testing.assert_close(decode(b, moved), expected)


def test_a_token_takes_as_much_as_its_active_features_have_entries():
    """No ``[tokens, features]``: each entry of an active feature is one entry of the result."""
    match = soft(4, gone=(0, 5))
    active = encode(random_sae(1), torch.randn(50, 16))
    moved = transport(active, match, torch.ones(24), torch.ones(24))
    n_entries = torch.bincount(match.rows, minlength=24)
    assert len(moved.features) == len(moved.values) == int(n_entries[active.features].sum())


def test_target_scale_of_another_width_is_the_target_s():
    match = soft(0, n=24, m=7, k=2)
    actual = transported(match, torch.eye(24), torch.full((24,), 2.0), torch.arange(7.0))
    expected = dense(match).float() / 2 * torch.arange(7.0)
    torch.testing.assert_close(actual, expected)

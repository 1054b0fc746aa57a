import dataclasses

import pytest
import torch

from conftest import random_sae
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.parts import Parts
from saematch.sae.folding import fold, is_uniform, rescale, threshold_kind


def test_folding_by_hand():
    sae = random_sae(0, d_model=2, n_features=2)
    sae = dataclasses.replace(
        sae,
        W_enc=torch.tensor([[2.0, 3.0], [4.0, 6.0]]),
        b_enc=torch.tensor([1.0, -3.0]),
        W_dec=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        threshold=torch.tensor([2.0, 3.0]),
    )
    folded = fold(sae, "threshold")
    assert torch.equal(folded.W_enc, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert torch.equal(folded.b_enc, torch.tensor([0.5, -1.0]))
    assert torch.equal(folded.W_dec, torch.tensor([[2.0, 0.0], [0.0, 6.0]]))
    assert torch.equal(folded.threshold, torch.ones(2))
    assert torch.equal(sae.threshold, torch.tensor([2.0, 3.0])), "folding is never in place"


@pytest.mark.parametrize("by", ["threshold", "decoder_norm", "none"])
def test_folding_keeps_the_function(by):
    sae = random_sae(1, d_model=16, n_features=64)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert (sae.encode(x) > 0).any()
    torch.testing.assert_close(fold(sae, by).reconstruct(x), sae.reconstruct(x))


def test_decoder_norm_makes_unit_rows_and_leaves_zero_rows():
    sae = random_sae(2)
    W_dec = sae.W_dec.clone()
    W_dec[3] = 0
    folded = fold(dataclasses.replace(sae, W_dec=W_dec), "decoder_norm")
    norms = folded.W_dec.norm(dim=1)
    assert norms[3] == 0
    assert torch.equal(folded.W_enc[:, 3], sae.W_enc[:, 3])
    torch.testing.assert_close(norms[torch.arange(len(norms)) != 3], torch.ones(len(norms) - 1))


@pytest.mark.parametrize("by", ["threshold", "decoder_norm"])
def test_matching_is_the_same_in_every_gauge(by):
    a, b = random_sae(3, 8, 40), random_sae(4, 8, 40)
    scale = torch.empty(40).log_normal_(0, 1, generator=torch.Generator().manual_seed(5))
    arm = Arm(by, Parts(), Optimal())
    plain = arm.match(a, b)
    other = arm.match(rescale(a, scale), rescale(b, scale.flip(0)))
    assert torch.equal(plain.columns, other.columns)
    assert plain.certificate.value == pytest.approx(other.certificate.value, rel=1e-5)


def test_without_a_fixed_gauge_matching_would_differ():
    """The test above can fail: fold "none" is a matching that depends on the gauge."""
    a, b = random_sae(3, 8, 40), random_sae(4, 8, 40)
    scale = torch.empty(40).log_normal_(0, 1, generator=torch.Generator().manual_seed(5))
    arm = Arm("none", Parts(), Optimal())
    other = arm.match(rescale(a, scale), rescale(b, scale.flip(0)))
    assert not torch.equal(arm.match(a, b).columns, other.columns)


@pytest.mark.parametrize("bad", [0.0, -0.5])
def test_thresholds_that_are_not_positive_are_refused_by_name(bad):
    sae = random_sae(6)
    threshold = sae.threshold.clone()
    threshold[[2, 7]] = bad
    with pytest.raises(ValueError, match=r"2 of 24 thresholds .*features 2, 7"):
        fold(dataclasses.replace(sae, threshold=threshold), "threshold")


def test_a_stand_in_folds_what_thresholds_cannot():
    origin = dataclasses.replace(random_sae(1).origin, stand_in_name="made up")
    scale = torch.full((24,), 2.0)
    stand_in = {"stand_in": scale, "origin": origin}
    relu = dataclasses.replace(random_sae(1), threshold=None, activation="relu")
    with pytest.raises(ValueError, match="stand_in=activation or stand_in=decoder_norm"):
        fold(relu, "threshold")
    for sae in (relu, dataclasses.replace(random_sae(1), threshold=torch.zeros(24))):
        folded = fold(dataclasses.replace(sae, **stand_in), "threshold")
        torch.testing.assert_close(folded.W_dec, 2 * sae.W_dec)
        assert torch.equal(folded.stand_in, torch.ones(24)), "folding again changes nothing"
        assert is_uniform(dataclasses.replace(sae, **stand_in))
    positive = dataclasses.replace(random_sae(1), **stand_in)
    torch.testing.assert_close(fold(positive, "threshold").threshold, torch.ones(24))


def test_topk_chooses_the_same_in_every_gauge():
    sae = random_sae(1, d_model=2, n_features=3)
    sae = dataclasses.replace(sae, threshold=None, activation="topk", k=1)
    scale = torch.tensor([1.0, 10.0, 0.1])
    other = rescale(rescale(sae, scale), torch.full((3,), 2.0))
    torch.testing.assert_close(other.rank_scale, 2 * scale)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.reconstruct(x), sae.reconstruct(x))
    forgetful = dataclasses.replace(other, rank_scale=None)
    assert not torch.allclose(forgetful.reconstruct(x), sae.reconstruct(x))


def test_unknown_fold_and_missing_thresholds():
    sae = random_sae(7)
    with pytest.raises(ValueError, match="unknown fold 'theta': choose one of threshold"):
        fold(sae, "theta")
    relu = dataclasses.replace(sae, threshold=None, activation="relu")
    with pytest.raises(ValueError, match="has no thresholds"):
        fold(relu, "threshold")


def test_uniform_thresholds_are_seen():
    sae = random_sae(8)
    assert (is_uniform(sae), threshold_kind(sae)) == (False, "per feature")
    same = dataclasses.replace(sae, threshold=torch.full_like(sae.threshold, 2.0))
    assert (is_uniform(same), threshold_kind(same)) == (True, "one for all")
    relu = dataclasses.replace(sae, threshold=None, activation="relu")
    assert (is_uniform(relu), threshold_kind(relu)) == (False, "none")

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from conftest import random_sae
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.read_write import ReadWrite
from saematch.sae.folding import FOLDS
from saematch.sae.stand_in import by_decoder_norm
from saematch.sae.suites import SaeFacts


def relu(sae):
    return replace(sae, activation="relu", threshold=None)


@pytest.mark.parametrize("fold", FOLDS)
def test_the_score_is_the_change_of_the_pre_activation_in_thresholds(fold):
    """Steer the hidden state by each unit decoder vector and encode it, in every fold."""
    source, target = random_sae(0), random_sae(1, n_features=30)
    factors = Arm(fold, ReadWrite(), TopK()).similarity(source, target)
    directions = normalize(source.W_dec.double(), dim=1)
    before = torch.randn(16, generator=torch.Generator().manual_seed(2)).double()
    states = torch.stack([before, *(before + directions)])
    pre = states @ target.W_enc.double() + target.b_enc
    expected = (pre[1:] - pre[0]) / target.threshold
    similarity = (factors.X_A @ factors.X_B.T).double()
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fold", FOLDS)
def test_a_stand_in_replaces_missing_thresholds(fold):
    source, target = (by_decoder_norm(relu(random_sae(seed))) for seed in (0, 1))
    factors = Arm(fold, ReadWrite(), TopK()).similarity(source, target)
    directions = normalize(source.W_dec.double(), dim=1)
    expected = directions @ target.W_enc.double() / target.stand_in
    similarity = (factors.X_A @ factors.X_B.T).double()
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-5)


def test_a_target_without_a_scale_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="set stand_in=activation or stand_in=decoder_norm"):
        ReadWrite().factors(random_sae(0), relu(random_sae(1)))
    ReadWrite().factors(relu(random_sae(0)), random_sae(1))  # only the target's are read


def test_it_finds_the_reader_where_decoders_point_elsewhere():
    """Feature 5 of the source is read by feature 9, which writes another direction."""
    source, target = random_sae(0), random_sae(1)
    target.W_enc[:, 9] = 4 * target.threshold[9] * normalize(source.W_dec[5], dim=0)
    assert TopK(1)(ReadWrite().factors(source, target)).columns[5] == 9
    assert TopK(1)(DecoderCosine().factors(source, target)).columns[5] != 9


def facts(layer=0, d_model=16, model=""):
    sae = random_sae(0, d_model, layer=layer)
    return SaeFacts.of(replace(sae, origin=replace(sae.origin, model_name=model)))


def test_pairs_that_cannot_write_are_refused():
    objective = ReadWrite()
    assert objective.refusal(facts(1), facts(1)) is None
    assert objective.refusal(facts(1, model="m"), facts(3)) is None
    assert "layer 3 writes nothing to layer 1" in objective.refusal(facts(3), facts(1))
    assert "one language model, not of m and n" in objective.refusal(
        facts(1, model="m"), facts(3, model="n")
    )
    assert "different d_model" in objective.refusal(facts(1), facts(3, d_model=8))

import pytest
import torch
from torch.nn.functional import cosine_similarity

from conftest import random_sae
from saematch.matching.arm import Arm
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.encoder_decoder_cosine import EncoderDecoderCosine
from saematch.sae.folding import FOLDS
from saematch.sae.suites import SaeFacts


def by_hand(source, target):
    """Return the mean of both cosines of all pairs, in float64."""
    decoder = cosine_similarity(source.W_dec.double()[:, None], target.W_dec.double()[None], dim=2)
    encoder = cosine_similarity(
        source.W_enc.T.double()[:, None], target.W_enc.T.double()[None], dim=2
    )
    return (decoder + encoder) / 2


@pytest.mark.parametrize("fold", FOLDS)
def test_the_similarity_is_the_mean_of_both_cosines_in_every_fold(fold):
    source, target = random_sae(0), random_sae(1, n_features=30)
    factors = Arm(fold, EncoderDecoderCosine(), TopK()).similarity(source, target)
    similarity = (factors.X_A @ factors.X_B.T).double()
    torch.testing.assert_close(similarity, by_hand(source, target), rtol=0, atol=1e-6)


def test_encoders_tell_apart_features_that_write_the_same():
    """Two target features share a decoder vector; only one reads what the source reads."""
    source, target = random_sae(0), random_sae(1)
    target.W_dec[3] = target.W_dec[7] = source.W_dec[5]
    target.W_enc[:, 7] = source.W_enc[:, 5]
    assert TopK(1)(EncoderDecoderCosine().factors(source, target)).columns[5] == 7
    factors = DecoderCosine().factors(source, target)
    similarity = factors.X_A @ factors.X_B.T
    assert similarity[5, 3] == pytest.approx(similarity[5, 7])


def test_saes_of_two_sizes_are_refused():
    facts = [SaeFacts.of(random_sae(0, d_model=size)) for size in (16, 8)]
    assert "different d_model" in EncoderDecoderCosine().refusal(*facts)
    assert EncoderDecoderCosine().refusal(facts[0], facts[0]) is None

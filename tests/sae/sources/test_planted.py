"""The planted suite: its truth is correct, and folding matters."""

import pytest
import torch

from saematch.evaluate.planted import sparse_codes
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.parts import Parts
from saematch.sae.activations import decode
from saematch.sae.folding import fold
from saematch.sae.sources.planted import PlantedSaes, TwoGauges
from saematch.sae.sources.source import ZooSaes

SOURCE = PlantedSaes(n_features=128, n_layers=3, n_tokens=50)


def test_the_truth_pairs_features_of_one_group_and_length():
    """Without jitter, pace and drift the later layer is the earlier one, shuffled and longer."""
    still = PlantedSaes(n_features=128, n_layers=2, drift=0.0, jitter=0.0, pace=0.0, growth=0.5)
    a, b = (fold(still.load(layer), "threshold") for layer in (0, 1))
    truth = still.truth(0, 1)
    assert truth.is_permutation
    torch.testing.assert_close(b.W_dec[truth.columns], a.W_dec * torch.tensor(0.5).exp())


def test_codes_mean_the_same_at_every_layer():
    """A token's active features at one layer are the partners of those at another."""
    truth = SOURCE.truth(0, 2)
    (features, values), (later, values_later) = SOURCE.codes(0), SOURCE.codes(2)
    assert torch.equal(truth.columns[features], later)
    units = values / SOURCE.load(0).threshold[features]
    torch.testing.assert_close(units, values_later / SOURCE.load(2).threshold[later])
    assert units.min() >= 1, "active: above the threshold"


def test_no_result_depends_on_the_gauge_of_decoder_vectors():
    plain, scaled = TwoGauges(1.0)(SOURCE, [0, 1]).values()
    assert not torch.allclose(plain.load(0).W_dec, scaled.load(0).W_dec)
    for layer in (0, 1):
        folded = [fold(s.load(layer), "threshold") for s in (plain, scaled)]
        torch.testing.assert_close(folded[0].W_dec, folded[1].W_dec)
        torch.testing.assert_close(folded[0].W_enc, folded[1].W_enc)
        states = [decode(s.load(layer), sparse_codes(s, layer)) for s in (plain, scaled)]
        torch.testing.assert_close(*states)


def test_folding_finds_what_directions_do_not_tell():
    recall = {
        by: Arm(by, Parts(), Optimal())
        .match(SOURCE.load(0), SOURCE.load(1))
        .agreement(SOURCE.truth(0, 1))
        for by in ("threshold", "decoder_norm")
    }
    assert recall["threshold"] > 0.7
    assert recall["decoder_norm"] < 0.5


def test_wrong_settings():
    with pytest.raises(ValueError, match="not a multiple of"):
        PlantedSaes(n_features=10, group=4)
    with pytest.raises(ValueError, match="requires sae=planted"):
        TwoGauges()(ZooSaes("chain", 1024, 20), [0, 1])

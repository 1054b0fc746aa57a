"""The best partners of each feature, from all pairs and from candidates."""

import numpy as np
import pytest
import torch

from conftest import random_sae
from matches import dense, partners
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import MutualNearest, Optimal, TopK
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.written_share import WrittenShare

SIZES = [(30, 40), (40, 30), (1, 5), (5, 1)]


def by_hand(scores, k):
    """Return the weights of the ``k`` largest positive scores of each row."""
    weights = np.zeros_like(scores)
    for row, of_row in enumerate(scores):
        chosen = np.argsort(-of_row, kind="stable")[:k]
        chosen = chosen[of_row[chosen] > 0]
        if len(chosen):
            weights[row, chosen] = of_row[chosen] / of_row[chosen].sum()
    return weights


@pytest.mark.parametrize(("n_source", "n_target"), SIZES)
@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_best_partners_of_all_pairs(n_source, n_target, k):
    g = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(n_source, 6, generator=g), torch.randn(n_target, 6, generator=g))
    scores = (factors.X_A.double() @ factors.X_B.double().T).numpy()
    scores[0] = -np.abs(scores[0]) if n_target == 1 else scores[0]
    match = TopK(k)(factors)
    expected = by_hand((factors.X_A @ factors.X_B.T).double().numpy(), k)
    np.testing.assert_allclose(dense(match).numpy(), expected, atol=1e-6)
    sums = dense(match).sum(dim=1)
    torch.testing.assert_close(sums[match.matched], torch.ones(len(match.matched)).double())
    assert (match.weights > 0).all()


def test_a_feature_with_negative_scores_only_stays_unmatched():
    match = TopK(2)(Factors(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[2.0, 1.0]])))
    assert (match.rows.tolist(), match.columns.tolist()) == ([0], [0])


@pytest.mark.parametrize("k", [1, 2, 100])
def test_the_best_partners_among_candidates(k):
    random = np.random.default_rng(0)
    scores = np.where(random.random((20, 15)) < 0.4, random.normal(0, 1, (20, 15)), 0.0)
    scores[3] = 0  # a source feature without candidates
    rows, columns = np.nonzero(scores)
    candidates = Candidates(
        torch.from_numpy(rows), torch.from_numpy(columns),
        torch.from_numpy(scores[rows, columns]), 20, 15,
    )  # fmt: skip
    match = TopK(k).of_candidates(candidates)
    np.testing.assert_allclose(dense(match).numpy(), by_hand(scores, k))
    assert 3 not in match.rows


def test_the_nearest_by_decoder_cosine():
    source, target = random_sae(0), random_sae(1)
    arm = Arm("threshold", DecoderCosine(), TopK(1))
    d, e = (torch.nn.functional.normalize(sae.W_dec.double(), dim=1) for sae in (source, target))
    cosine = d @ e.T
    expected = cosine.argmax(dim=1)
    for fold in ("threshold", "decoder_norm", "none"):
        match = Arm(fold, DecoderCosine(), TopK(1)).match(source, target)
        assert torch.equal(partners(match), expected)
    weights = dense(Arm("none", DecoderCosine(), TopK(24)).match(source, target))
    positive = cosine.clamp(min=0)
    torch.testing.assert_close(
        weights, positive / positive.sum(dim=1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert arm.matcher.one_partner is False


@pytest.mark.parametrize("matcher", [Optimal(), MutualNearest()])
def test_a_matcher_that_takes_no_candidates_is_refused(matcher):
    with pytest.raises(InputError) as error:
        Arm("threshold", WrittenShare(), matcher)
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in ("arms", "WrittenShare", type(matcher).__name__))

"""The best partners of each feature, from all pairs and from candidates."""

import numpy as np
import pytest
import scipy.optimize
import torch

from conftest import random_sae
from matches import dense, partners
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import (
    ChanceLevel,
    Greedy,
    Identity,
    MutualNearest,
    Optimal,
    Scipy,
    TopK,
)
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.sparse_map import SparseMap
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
@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_best_partners_of_all_pairs(n_source, n_target, k):
    g = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(n_source, 6, generator=g), torch.randn(n_target, 6, generator=g))
    k = min(k, n_target)
    match = TopK(k)(factors)
    expected = by_hand((factors.X_A @ factors.X_B.T).double().numpy(), k)
    np.testing.assert_allclose(dense(match).numpy(), expected, atol=1e-6)
    sums = dense(match).sum(dim=1)
    torch.testing.assert_close(sums[match.matched], torch.ones(len(match.matched)).double())
    assert (match.weights > 0).all()


def test_a_feature_with_negative_scores_only_stays_unmatched():
    match = TopK(1)(Factors(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[2.0, 1.0]])))
    assert (match.rows.tolist(), match.columns.tolist()) == ([0], [0])


@pytest.mark.parametrize("k", [1, 2, 15])
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


@pytest.mark.parametrize("k", [1, 3, 12])
@pytest.mark.parametrize("size", [4, 20])  # more vectors than numbers, and fewer
def test_weights_by_nonnegative_least_squares(k, size):
    """SciPy's solution for each source feature on its k partners; scores stay the similarities."""
    g = torch.Generator().manual_seed(k)
    source, target = torch.randn(40, size, generator=g), torch.randn(12, size, generator=g)
    target[3] = 0.7 * target[4]  # parallel vectors
    similarity = (source @ target.T).double().numpy()
    match = TopK(k, weights="nnls")(Factors(source, target))
    weights = dense(match).numpy()
    for row, vector in enumerate(source.double().numpy()):
        best = np.argsort(-similarity[row])[:k]
        best = best[similarity[row, best] > 0]
        vectors = target.double().numpy()[best]
        expected, error = scipy.optimize.nnls(vectors.T, vector)
        assert np.linalg.norm(vector - weights[row] @ target.double().numpy()) == pytest.approx(
            error, abs=1e-5
        )
        if not {3, 4} <= set(best):  # else weights are not unique
            np.testing.assert_allclose(weights[row, best], expected, atol=1e-5)
        assert not np.delete(weights[row], best).any()
    assert (match.weights > 0).all()
    np.testing.assert_allclose(match.scores, similarity[match.rows, match.columns], rtol=1e-5)


def test_a_feature_that_splits_gets_its_children_in_their_proportions():
    children = torch.eye(6)
    source = torch.stack([0.8 * children[0] + 0.6 * children[1], children[4]])
    match = TopK(3, weights="nnls")(Factors(source, children))
    expected = torch.zeros(2, 6, dtype=torch.float64)
    expected[0, 0], expected[0, 1], expected[1, 4] = 0.8, 0.6, 1.0
    torch.testing.assert_close(dense(match), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("matcher", "words"),
    [
        (Scipy(), "choose a matcher that takes candidates, such as TopK"),
        (Identity(), "choose a matcher that takes candidates, such as TopK"),
        (TopK(weights="nnls"), "matcher.weights=nnls fits vectors: set matcher.weights=score"),
        (Optimal(unmatched=ChanceLevel()), "set matcher.unmatched to a number, such as 0.0"),
    ],
)
@pytest.mark.parametrize("objective", [WrittenShare(), SparseMap()])
def test_a_matcher_that_takes_no_candidates_is_refused(matcher, words, objective):
    with pytest.raises(InputError) as error:
        Arm("threshold", objective, matcher)
    message, names = str(error.value), (type(objective).__name__, type(matcher).__name__)
    assert "\n" not in message
    assert all(name in message for name in ("arms", words, *names))


@pytest.mark.parametrize("matcher", [TopK(weights="nnls"), Optimal(unmatched=ChanceLevel())])
def test_settings_that_need_vectors_refuse_candidates_outside_an_arm_too(matcher):
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InputError, match=f"{type(matcher).__name__} cannot match candidates"):
        matcher.of_candidates(Candidates(empty, empty, empty.double(), 30, 30))


@pytest.mark.parametrize("matcher", [Optimal(), MutualNearest(), Greedy(), TopK()])
def test_matchers_that_take_candidates(matcher):
    assert Arm("none", SparseMap(), matcher).reads == ("weights",)


def test_more_partners_than_target_features_are_refused():
    empty = torch.zeros(0, dtype=torch.int64)
    message = "matcher.k=8 is more than the 7 features of the target SAE: choose at most 7"
    assert TopK(8).width_refusal(7) == message
    assert TopK(7).width_refusal(7) is None
    with pytest.raises(InputError, match=message):
        TopK(8)(Factors(torch.ones(9, 2), torch.ones(7, 2)))
    with pytest.raises(InputError, match=message):
        TopK(8).of_candidates(Candidates(empty, empty, empty.double(), 9, 7))


def test_unknown_weights_are_refused():
    with pytest.raises(InputError, match=r"matcher\.weights='equal' must be 'score' or 'nnls'"):
        TopK(weights="equal")

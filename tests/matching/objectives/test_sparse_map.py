from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn.functional import normalize

from conftest import random_sae
from saematch.core.errors import InputError
from saematch.matching.arm import Arm
from saematch.matching.matchers import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.sparse_map import SparseMap
from saematch.sae.folding import FOLDS
from saematch.sae.suites import SaeFacts


def directions(sae):
    return normalize(sae.W_dec.double(), dim=1).numpy()


def dense(candidates):
    scores = np.zeros((candidates.n_source, candidates.n_target))
    scores[candidates.rows, candidates.columns] = candidates.scores
    return scores


def with_vectors(seed, vectors):
    """Return an SAE whose decoder vectors are the rows, at lengths other than 1."""
    sae = random_sae(seed, vectors.shape[1], len(vectors))
    lengths = torch.linspace(0.5, 2.0, len(vectors))
    return sae.__class__(**{**vars(sae), "W_dec": vectors.float() * lengths[:, None]})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("entries", "n_candidates"), [(1, 1), (3, 8), (4, 64)])
def test_coefficients_are_scipy_s_for_the_chosen_vectors(reverse, entries, n_candidates):
    source, target = random_sae(0, n_features=40), random_sae(1, n_features=30)
    candidates = SparseMap(entries, n_candidates, reverse).candidates_of(source, target)
    keys = candidates.rows * 30 + candidates.columns
    assert (keys[1:] > keys[:-1]).all() and (candidates.scores > 0).all()
    scores, parts, sums = dense(candidates), directions(source), directions(target)
    if reverse:
        scores, parts, sums = scores.T, sums, parts
    cosines = sums @ parts.T
    for column, vector in enumerate(sums):
        chosen = np.flatnonzero(scores[:, column])
        assert 1 <= len(chosen) <= entries
        assert set(chosen) <= set(np.argsort(-cosines[column])[:n_candidates])
        assert np.argmax(cosines[column]) in chosen or entries > 1
        expected, _ = scipy.optimize.nnls(parts[chosen].T, vector)
        np.testing.assert_allclose(scores[chosen, column], expected, atol=1e-5)


def test_the_sums_are_nearly_as_near_as_those_of_the_best_choice():
    """Brute force over all choices of 2 of 10 vectors; the pursuit is greedy, so rarely worse."""
    source, target = random_sae(2, 6, 10), random_sae(3, 6, 40)
    scores = dense(SparseMap(2, 10).candidates_of(source, target))
    parts, sums = directions(source), directions(target)
    errors = np.linalg.norm(sums - scores.T @ parts, axis=1)
    best = [
        min(scipy.optimize.nnls(parts[list(two)].T, v)[1] for two in combinations(range(10), 2))
        for v in sums
    ]
    assert (errors >= np.array(best) - 1e-6).all()
    assert (errors <= np.array(best) + 1e-6).mean() > 0.6
    assert errors.mean() < 1.05 * np.mean(best)
    one = np.linalg.norm(sums - dense(SparseMap(1, 10).candidates_of(source, target)).T @ parts,
                         axis=1)  # fmt: skip
    assert (errors <= one + 1e-6).all()


@pytest.mark.parametrize("fold", FOLDS)
def test_scores_are_the_same_in_every_fold(fold):
    source, target = random_sae(0), random_sae(1)
    scores = dense(Arm(fold, SparseMap(), TopK()).similarity(source, target))
    expected = dense(SparseMap().candidates_of(source, target))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_feature_that_splits_keeps_its_children_where_cosine_prefers_copies():
    """The parent is the sum of three children; two near copies of the first are nearer to it."""
    axes = torch.eye(12)
    parent = normalize(1.0 * axes[0] + 0.7 * axes[1] + 0.5 * axes[2], dim=0)
    copies = [normalize(axes[0] + 0.05 * axes[n], dim=0) for n in (8, 9)]
    target = with_vectors(1, torch.stack([*axes[:3], *copies, *axes[3:8]]))
    source = with_vectors(0, torch.stack([parent, axes[5], axes[10]]))
    mapped = Arm("none", SparseMap(reverse=True), TopK(4)).match(source, target)
    assert mapped.columns[mapped.rows == 0].tolist() == [0, 1, 2]
    expected = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        mapped.scores[mapped.rows == 0], expected / expected.norm(), atol=1e-5, rtol=0
    )
    nearest = Arm("none", DecoderCosine(), TopK(3)).match(source, target)
    assert nearest.columns[nearest.rows == 0].tolist() == [0, 3, 4]


def test_parts_that_merge_are_found_in_the_other_direction():
    axes = torch.eye(8)
    merged = normalize(0.8 * axes[0] + 0.6 * axes[1], dim=0)
    source = with_vectors(0, axes[:4])
    target = with_vectors(1, torch.stack([axes[6], merged, axes[2]]))
    scores = dense(SparseMap().candidates_of(source, target))
    expected = np.zeros((4, 3))
    expected[0, 1], expected[1, 1], expected[2, 2] = 0.8, 0.6, 1.0
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(InputError, match=r"objective\.entries=4 vectors cannot be chosen among"):
        SparseMap(4, 3)
    facts = [SaeFacts.of(random_sae(0, d_model=size)) for size in (16, 8)]
    assert "different d_model" in SparseMap().refusal(*facts)

"""Objectives from activity on planted codes: special cases, and where each of them is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import random_sae
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.core.store import write
from saematch.matching.objectives.jaccard import Jaccard
from saematch.matching.objectives.necessity import Necessity
from saematch.matching.objectives.pearson import Pearson
from saematch.matching.objectives.sufficiency import Sufficiency
from saematch.matching.objectives.written_share import WrittenShare
from saematch.sae.recorders import Recording, tensor_name
from saematch.sae.suites import SaeFacts

PAIR = Pair(SaeKey("default", 0), SaeKey("wide", 0))
OBJECTIVES = (Pearson, Jaccard, Necessity, Sufficiency, WrittenShare)


def recording_of(folder, *batches):
    """Return a recording of dense activations ``(f, z)``; each batch is a text set."""
    files = {}
    for number, batch in enumerate(batches):
        tensors = {}
        for key, dense in zip(PAIR, batch, strict=True):
            values = torch.as_tensor(dense).float()
            parts = {
                "counts": (values > 0).sum(dim=1).int(),
                "features": values.nonzero()[:, 1].to(torch.uint16),
                "values": values[values > 0],
            }
            tensors |= {tensor_name(key, name): tensor for name, tensor in parts.items()}
        path = folder / f"{number}.safetensors"
        write(path, tensors)
        files[f"set {number}"] = ((path,),)
    return Recording(files)


def scores_of(objective, folder, *batches):
    """Return the candidates' scores as ``{(i, j): score}``."""
    f, z = batches[0]
    source, target = random_sae(0, n_features=f.shape[1]), random_sae(1, n_features=z.shape[1])
    candidates = objective.candidates(PAIR, recording_of(folder, *batches), source, target)
    assert (candidates.n_source, candidates.n_target) == (f.shape[1], z.shape[1])
    pairs = zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True)
    return dict(zip(pairs, candidates.scores.tolist(), strict=True))


def tokens(n, *ranges):
    """Return activations of 1 on the given tokens, a column for each feature."""
    f = np.zeros((n, len(ranges)))
    for feature, of_feature in enumerate(ranges):
        f[list(of_feature), feature] = 1
    return f


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_features_that_are_never_active_have_no_candidates(tmp_path, objective):
    f = tokens(6, [0, 1, 2], [])
    z = tokens(6, [], [1, 2, 3], [4])
    assert scores_of(objective(), tmp_path, (f, z)).keys() == {(0, 1)}
    assert scores_of(objective(), tmp_path / "none", (f[3:], z[3:])) == {}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_token_and_a_batch_without_any_activity(tmp_path, objective):
    f, z = tokens(1, [0], []), tokens(1, [0])
    scores = scores_of(objective(floor=1), tmp_path, (0 * f, 0 * z), (f, z))
    assert scores.keys() == {(0, 0)}
    alone = scores_of(objective(floor=1), tmp_path / "one", (f, z))
    assert alone.keys() == (set() if objective is Pearson else {(0, 0)}), "no variance"
    assert scores_of(objective(floor=2), tmp_path / "two", (f, z), (f, z)).keys() == alone.keys()
    assert scores_of(objective(floor=3), tmp_path / "three", (f, z), (f, z)) == {}


def test_pearson_is_undefined_for_a_constant_activation(tmp_path):
    z = np.random.default_rng(0).random((50, 1)) + 0.1
    f = np.concatenate([np.full((50, 1), 0.1), z], axis=1)
    scores = scores_of(Pearson(), tmp_path, (f[:20], z[:20]), (f[20:], z[20:]))
    assert scores == {(1, 0): pytest.approx(1, abs=1e-9)}


def test_pearson_counts_zeros_and_needs_no_scale(tmp_path):
    random = np.random.default_rng(1)
    f = np.where(random.random((40, 3)) < 0.5, random.random((40, 3)) + 0.1, 0)
    z = np.where(random.random((40, 4)) < 0.5, random.random((40, 4)) + 0.1, 0)
    expected = np.corrcoef(f.T, z.T)[:3, 3:]
    scores = scores_of(Pearson(), tmp_path, (f, z))
    assert len(scores) == 12 and (expected < 0).any()
    for (i, j), score in scores.items():
        assert score == pytest.approx(expected[i, j], abs=1e-6)
    scaled = scores_of(Pearson(), tmp_path / "scaled", (100 * f, z / 8))
    assert scaled == pytest.approx(scores, abs=1e-6)


def test_necessity_finds_the_parts_of_a_general_feature_and_sufficiency_its_parent(tmp_path):
    """The source has a general and a special feature; so has the target, with a frequent one."""
    general, special = range(60), (range(20), range(20, 40), range(40, 60))
    frequent = range(10, 200)
    f = tokens(200, general, special[0])
    z = tokens(200, general, *special, frequent)
    splits = tokens(200, *special, frequent)

    def scores(objective, of_source, of_target):
        folder = tmp_path / f"{objective.__name__}{of_source.shape}{of_target.shape}"
        return scores_of(objective(), folder, (of_source, of_target))

    parts, parent = scores(Necessity, f, splits), scores(Sufficiency, f, z)
    assert [parts[0, j] for j in range(4)] == [1, 1, 1, pytest.approx(50 / 190)]
    of_general = scores(Sufficiency, f, splits)
    assert of_general[0, 3] == pytest.approx(50 / 60) and of_general[0, 0] == pytest.approx(1 / 3)
    assert parent[1, 0] == 1 and scores(Necessity, f, z)[1, 0] == pytest.approx(1 / 3)
    index = scores(Jaccard, f, z)
    assert index[0, 0] == index[1, 1] == 1 and index[1, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("objective", "floor"), [(Necessity, 2), (Sufficiency, 2), (Jaccard, 1)])
def test_one_common_token_is_not_enough_for_a_conditional_probability(tmp_path, objective, floor):
    assert objective().floor == floor
    f, z = tokens(9, [0], [1, 2]), tokens(9, [0], [1, 2])
    expected = {(1, 1): 1.0} if floor == 2 else {(0, 0): 1.0, (1, 1): 1.0}
    assert scores_of(objective(), tmp_path, (f, z)) == expected


def test_ties_among_candidates_go_to_the_first(tmp_path):
    f, z = tokens(4, range(4)), tokens(4, *[range(4)] * 5)
    assert list(scores_of(Jaccard(2), tmp_path, (f, z))) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_language_models_are_refused(objective):
    facts = [SaeFacts.of(random_sae(layer, layer=layer)) for layer in (0, 1)]
    assert objective().refusal(*facts) is None
    named = [
        replace(fact, origin=replace(fact.origin, model_name=name))
        for fact, name in zip(facts, ("x", "y"), strict=True)
    ]
    assert "one language model, not of x and y" in objective().refusal(*named)


def test_only_the_written_share_needs_equal_sizes_and_a_later_target():
    first, second = (SaeFacts.of(random_sae(layer, layer=layer)) for layer in (0, 1))
    narrow = SaeFacts.of(random_sae(1, d_model=8, layer=1))
    for objective in OBJECTIVES[:-1]:
        assert objective().refusal(second, first) is objective().refusal(first, narrow) is None
    assert "layer 1 writes nothing to layer 0" in WrittenShare().refusal(second, first)
    assert "d_model" in WrittenShare().refusal(first, narrow)


@pytest.mark.parametrize("settings", [{"floor": 0}, {"n_candidates": 0}, {"floor": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"objective.{name}="):
        Jaccard(**settings)

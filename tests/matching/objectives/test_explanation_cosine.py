"""The cosine of explanations agrees with a dense computation; only explained features match."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import random_sae
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.explain.explanations import Explanation, FeatureKey
from saematch.explain.tf_idf import TfIdf
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.explained import Explained
from saematch.matching.matchers import Scipy, TopK
from saematch.matching.matches import match_pairs
from saematch.matching.objectives import explanation_cosine
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.explanation_cosine import ExplanationCosine
from saematch.matching.objectives.feature_texts import FeatureTexts
from saematch.matching.store import MatchStore
from saematch.sae.suites import SaeShelf

A, B = SaeKey("default", 0), SaeKey("default", 1)
PAIR = Pair(A, B)
OBJECTIVE = ExplanationCosine(TfIdf())
WORDS = ["red", "river", "blue", "sky", "lake", "stone", "bird", "song"]


class Dense:
    """An embedding whose vectors are dense: those of TF-IDF in another form."""

    def check(self, replies):
        pass

    def embed(self, texts, replies):
        return TfIdf().embed(texts, replies).toarray().astype(np.float32)


def texts_of(seed, n, n_features):
    """Return explanations of ``n`` features, each of one to four words."""
    generator = np.random.default_rng(seed)
    features = np.sort(generator.permutation(n_features)[:n])
    texts = (generator.choice(WORDS, generator.integers(1, 5), replace=False) for _ in features)
    texts = tuple(" ".join(words) for words in texts)
    return FeatureTexts(torch.from_numpy(features), texts, ("e",) * n, n_features)


@pytest.mark.parametrize("embedding", [TfIdf(), Dense()])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 23])
def test_the_candidates_are_the_best_of_all_pairs(embedding, at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(explanation_cosine, "SIMILARITIES_AT_ONCE", at_once)
    source, target = texts_of(0, 18, 25), texts_of(1, 21, 30)
    vectors = TfIdf().embed([*source.texts, *target.texts], tmp_path).toarray()
    cosines = vectors[:18] @ vectors[18:].T
    objective = ExplanationCosine(embedding, n_candidates=4)
    candidates = objective.candidates_of_texts(source, target, tmp_path)
    assert (candidates.n_source, candidates.n_target) == (25, 30)
    keys = candidates.rows * 30 + candidates.columns
    assert (keys[1:] > keys[:-1]).all()
    for place, feature in enumerate(source.features.tolist()):
        of_row = candidates.rows == feature
        scores = candidates.scores[of_row].numpy()
        best = np.sort(cosines[place])[-4:]
        np.testing.assert_allclose(np.sort(scores[scores > 0]), best[best > 0], atol=1e-6)
        places = np.searchsorted(target.features, candidates.columns[of_row])
        np.testing.assert_allclose(cosines[place, places], scores, atol=1e-6)
    assert set(candidates.rows.tolist()) <= set(source.features.tolist())
    assert set(candidates.columns.tolist()) <= set(target.features.tolist())


def test_an_sae_without_any_explanation_has_no_candidates(tmp_path):
    nothing = FeatureTexts(torch.zeros(0, dtype=torch.int64), (), (), 30)
    for source, target in ((texts_of(0, 5, 9), nothing), (nothing, texts_of(0, 5, 9))):
        candidates = ExplanationCosine(TfIdf()).candidates_of_texts(source, target, tmp_path)
        assert len(TopK(2).of_candidates(candidates).rows) == 0


class Labels:
    """Explanations in memory: texts by SAE and feature."""

    asks_llm = False

    def __init__(self, texts):
        self.texts, self.requested = texts, []

    def features(self, sae):
        return sorted(self.texts[sae])

    def of(self, features, others=False):
        self.requested += features
        return {
            FeatureKey(sae, feature): (Explanation(self.texts[sae][feature], "me"),
                                       Explanation("another one", "you"))
            for sae, feature in features
        }  # fmt: skip


@pytest.fixture
def saes():
    return SaeShelf.of({key: random_sae(key.layer, layer=key.layer) for key in PAIR})


@pytest.fixture
def planted():
    """Texts of a known permutation; features 20 to 23 of the source have none."""
    truth = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    text = "number{0} of kind{1}".format
    source = {i: text(i, i % 3) for i in range(20)}
    return truth, Labels({A: source, B: {truth[i]: text(i, i % 3) for i in range(24)}})


def arm_of(objective=OBJECTIVE):
    return Arm("decoder_norm", objective, TopK(1))


def test_planted_explanations_are_recovered_where_weights_are_random(saes, planted, tmp_path):
    truth, labels = planted
    arms = {"texts": arm_of(), "weights": arm_of(objective=DecoderCosine())}
    store = MatchStore(tmp_path, Evidence(explained=Explained(labels, saes.facts, tmp_path / "s")))
    matches = match_pairs(saes, (PAIR,), arms, store, tmp_path / "m")
    match = matches.by_arm["texts"][PAIR]
    assert match.rows.tolist() == list(range(20)), "features without a text stay unmatched"
    assert match.columns.tolist() == truth[:20]
    torch.testing.assert_close(match.scores, torch.ones(20).double())
    assert matches.by_arm["weights"][PAIR].columns.tolist() != truth
    assert len(labels.requested) == 44, "the explanations of an SAE are loaded once"


def test_a_match_is_kept_by_the_texts_of_both_saes(saes, planted, tmp_path):
    _, labels = planted

    def counts_with(labels, arm):
        evidence = Evidence(explained=Explained(labels, saes.facts, tmp_path / "s"))
        store = MatchStore(tmp_path, evidence)
        store.match(saes, *PAIR, arm)
        return store.counts["solved"], store.counts["read"]

    assert counts_with(labels, arm_of()) == (1, 0)
    assert counts_with(labels, arm_of()) == (0, 1)
    assert counts_with(labels, arm_of(objective=ExplanationCosine(TfIdf(), 7))) == (1, 0)
    for key in PAIR:
        changed = Labels({**labels.texts, key: labels.texts[key] | {0: "something else"}})
        assert counts_with(changed, arm_of()) == (1, 0)


def test_explanations_are_needed_and_said_to_be_read(saes, tmp_path):
    assert arm_of().reads == ("explanations",)
    with pytest.raises(InputError, match="reads explanations, but this run has none"):
        MatchStore(tmp_path).match(saes, *PAIR, arm_of())


def test_any_two_saes_can_be_compared(saes):
    wide = replace(saes.facts[B], d_model=99, n_features=5)
    assert ExplanationCosine(TfIdf()).refusal(saes.facts[A], wide) is None


def test_a_matcher_of_all_pairs_is_refused():
    with pytest.raises(InputError, match="ExplanationCosine scores only candidate pairs"):
        Arm("decoder_norm", ExplanationCosine(TfIdf()), Scipy())


def test_an_embedding_is_checked_by_name():
    with pytest.raises(InputError, match=r"objective\.embedding=3 must be of class Embedding"):
        ExplanationCosine(3)

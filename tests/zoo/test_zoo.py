"""Properties of the shipped zoo."""

import json
from pathlib import Path

import pytest
import torch

import saematch
from evaluations import recorded, subject_of, tables_of
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.evaluate.skipping import Skipping
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal, Random
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.sources.source import ZooSaes
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import tokenise

ZOO = Path(saematch.__file__).parent / "zoo"
SETS = [
    ("chain", 1024, 20),
    ("chain", 2048, 20),
    ("mixed", 1024, 20),
    ("independent", 1024, 10),
    ("independent", 1024, 20),
    ("independent", 1024, 40),
]


def test_size():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) <= 40 * 2**20


def test_a_hundred_texts_of_each_kind():
    for texts in ZooTexts(("prose", "docs", "code"), n_texts=100, max_tokens=128).load():
        assert len(set(texts.texts)) == 100
    for path in (ZOO / "texts").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["source"]
            assert row["licence"]


@pytest.mark.parametrize(("family", "width", "sparsity"), SETS)
def test_every_set_is_whole(family, width, sparsity):
    source = ZooSaes(family, width, sparsity)
    assert source.layers() == list(range(8))
    sae = source.load(3)
    assert (sae.n_features, sae.d_model) == (width, 128)
    assert sae.origin.model_name == "saematch-zoo"
    assert sae.origin.mean_l0 == pytest.approx(sparsity, rel=0.35)
    assert sae.threshold.dtype == torch.float32
    assert (sae.threshold > 0).all()


@pytest.mark.parametrize("by", ["threshold", "decoder_norm"])
def test_folding_keeps_the_function_of_the_zoo(by):
    sae = ZooSaes("chain", 1024, 20).load(4)
    x = sae.b_dec + 3.0 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fold(sae, by).reconstruct(x), sae.reconstruct(x), atol=1e-3, rtol=1e-4
    )


def test_chain_hides_a_permutation_that_matching_finds():
    source = ZooSaes("chain", 1024, 20)
    truth = source.truth(5, 6)
    assert truth.is_permutation
    identity = Match.from_columns(torch.arange(1024), 1024)
    assert identity.agreement(truth) < 0.02, "shuffled"
    match = Arm("threshold", Parts(), Optimal()).match(source.load(5), source.load(6))
    assert match.agreement(truth) > 0.9


def test_the_match_beats_chance_on_every_kind_of_text(tmp_path):
    """The result of the demo, on a few texts and one layer pair."""
    source = ZooSaes("chain", 1024, 20)
    pair = Pair.of_layers(3, 4)
    saes = {key: source.load(key.layer) for key in (pair.source, pair.target)}
    arms = {
        "folded": Arm("threshold", Parts(), Optimal()),
        "random": Arm("threshold", Parts(), Random(0)),
    }
    store = MatchStore(tmp_path / "cache")
    matches = match_pairs(saes, (pair,), arms, store, tmp_path / "matches")
    lm = LmSource("zoo", "saematch-zoo").load()
    sets = ZooTexts(("prose", "docs", "code"), n_texts=8, max_tokens=64).load()
    tokens = {texts.name: tokenise(texts, lm, 64).batches(8) for texts in sets}
    skipping = Skipping(("drop",))
    subject = subject_of(saes, matches, arms, tmp_path / "evaluation")
    tables = tables_of(recorded(subject, [skipping], lm, tokens), skipping)
    rows = {(row["dataset"], row["arm"]): row for row in tables.rows("strategies")}
    for kind in ("prose", "docs", "code"):
        folded, chance = rows[kind, "folded"], rows[kind, "random"]
        assert folded["explained_variance_low"] > chance["explained_variance_high"]
        assert folded["explained_variance"] > max(0.5, chance["explained_variance"] + 1)
        assert folded["delta_loss"] < chance["delta_loss"] - 2


def test_truths_compose_over_layers():
    source = ZooSaes("chain", 1024, 20)
    by_hand = source.truth(2, 3).compose(source.truth(3, 4))
    assert torch.equal(source.truth(2, 4).columns, by_hand.columns)


def test_mixed_has_a_quarter_without_a_partner():
    source = ZooSaes("mixed", 1024, 20)
    for layer in range(7):
        truth = source.truth(layer, layer + 1)
        assert truth.n_source - len(truth.matched) == 256


@pytest.mark.parametrize("sparsity", [10, 20, 40])
def test_independent_saes_start_apart(sparsity):
    """Identity is at chance: decoder vectors of equal index are not more similar than others."""
    source = ZooSaes("independent", 1024, sparsity)
    assert source.truth(0, 1) is None
    for layer in range(7):
        a, b = (fold(source.load(at), "decoder_norm").W_dec for at in (layer, layer + 1))
        cosines = a @ b.T
        own, all_ = cosines.diagonal(), cosines
        assert own.mean() == pytest.approx(all_.mean().item(), abs=5 * all_.std().item() / 32)
        assert (own > 0.9).sum() <= 3

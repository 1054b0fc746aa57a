"""Pairs, composition and the rows of ``matches``."""

import pytest
import torch

from conftest import random_sae
from evaluations import subject_of
from matches import permutation
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.match_tables import MatchTables, exact_arms
from saematch.evaluate.weights import (
    FoldedPair,
    decoder_norm_change,
    feature_mse,
    of_least_error,
    row_errors,
)
from saematch.matching.arm import Arm
from saematch.matching.matchers import ChanceLevel, Optimal, Random, Sinkhorn, TopK
from saematch.matching.matches import match_pairs, matching_refusals
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.parts import Parts
from saematch.matching.pairing import FromStarts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.suites import SaeFacts


def test_composition_goes_through_every_layer_between(tmp_path):
    saes = {SaeKey("default", layer): random_sae(layer, layer=layer) for layer in (0, 1, 3, 4)}
    direct = Arm("threshold", Parts(), Optimal())
    arms = {"direct": direct, "composed": Arm("threshold", Parts(), Optimal(), compose=True)}
    pairs = FromStarts([0])({"default": [0, 1, 3, 4]})
    store = MatchStore(tmp_path / "cache")
    matches = match_pairs(saes, pairs, arms, store, tmp_path / "matches")
    hops = [(0, 1), (1, 3), (3, 4)]
    steps = [direct.match(*(saes[SaeKey("default", layer)] for layer in hop)) for hop in hops]
    far = steps[0].compose(steps[1]).compose(steps[2])
    composed = matches.by_arm["composed"][Pair.of_layers(0, 4)]
    assert torch.equal(composed.columns, far.columns)
    near = Pair.of_layers(0, 1)
    assert matches.hashes["composed"][near] == matches.hashes["direct"][near]
    assert store.counts["solved"] == 3 + 2, "three steps, and two far pairs at once"
    assert exact_arms(arms) == {"composed": "direct"}
    rows = MatchTables().tables(subject_of(saes, matches, arms), None).rows("matches")
    agreement = {(r["target_layer"], r["arm"]): r["agreement"] for r in rows}
    assert agreement[1, "composed"] == 1.0
    once = matches.by_arm["direct"][Pair.of_layers(0, 4)]
    assert agreement[4, "composed"] == far.agreement(once)
    assert agreement[4, "direct"] is None
    kept, _ = Match.load(tmp_path / "matches/composed/0-4.safetensors")
    assert kept.hash == matches.hashes["composed"][Pair.of_layers(0, 4)] == far.hash
    assert far.hash != once.hash


def test_the_least_are_a_share_of_the_pairs():
    a, b = random_sae(0), random_sae(1)
    match = Random(0)(Parts().factors(a, b))
    errors = row_errors(FoldedPair(a, b), match)
    assert torch.equal(errors, feature_mse(FoldedPair(a, b), match)), "of one partner of weight 1"
    for share, n in ((0.0, 0), (0.3, 7), (0.5, 12), (1.0, 24)):
        chosen = of_least_error(match, errors, share).rows
        assert len(chosen) == n
        if 0 < n < 24:
            others = [i for i in range(24) if i not in chosen]
            assert errors[chosen].max() <= errors[others].min()


def test_equal_errors_are_taken_in_the_order_of_features():
    match = of_least_error(permutation(0), torch.zeros(24).double(), 0.25)
    assert match.rows.tolist() == list(range(6))


def test_decoder_norm_change_by_hand():
    a, b = random_sae(0), random_sae(1)
    columns = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    norms = [torch.linalg.vector_norm(fold(s, "threshold").W_dec, dim=1) for s in (a, b)]
    change = (norms[1][columns] - norms[0]).double()
    moved = decoder_norm_change(FoldedPair(a, b), Match.from_columns(columns, 24))
    assert moved["decoder_norm_change"] == pytest.approx(change.mean().item(), rel=1e-5)
    assert moved["decoder_norm_change_q25"] == pytest.approx(change.quantile(0.25).item(), rel=1e-5)
    nothing = decoder_norm_change(FoldedPair(a, b), Match.from_columns(torch.full((24,), -1), 24))
    assert set(nothing.values()) == {None}


def test_a_matcher_of_positive_scores_is_refused_squared_distances():
    keys = [SaeKey("default", layer) for layer in range(3)]
    sizes = zip(keys, (24, 30, 24), strict=True)
    saes = {key: random_sae(key.layer, n_features=n, layer=key.layer) for key, n in sizes}
    facts = {key: SaeFacts.of(sae) for key, sae in saes.items()}
    matchers = {
        "top": TopK(3), "level": Optimal(unmatched=0.0), "lower": Optimal(unmatched=-2.0),
        "chance": Optimal(unmatched=ChanceLevel()), "whole": Optimal(), "soft": Sinkhorn(k=3),
    }  # fmt: skip
    arms = {name: Arm("threshold", Parts(), matcher) for name, matcher in matchers.items()}
    assert not matching_refusals(facts, [Pair(keys[0], keys[2])], arms)
    pair = Pair(*keys[:2])
    refusals = matching_refusals(facts, [pair], arms)
    assert [refusal.arm for refusal in refusals] == ["top", "level"]
    assert "never positive, so TopK(k=3" in refusals[0].reason
    for name in ("top", "level"):
        assert not len(arms[name].match(saes[pair.source], saes[pair.target]).rows)
    cosine = {"a": Arm("threshold", DecoderCosine(), TopK(3))}
    assert not matching_refusals(facts, [pair], cosine)

"""The written share agrees with a dense computation, and is recorded once."""

from dataclasses import replace

import pytest
import torch

from conftest import random_sae
from evaluations import CPU, forward_of
from interventions import fitting_sae, lively, texts_of
from matches import dense
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.activity import record_activity
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.matchers import TopK
from saematch.matching.matches import match_pairs
from saematch.matching.objectives import written_share
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.written_share import WrittenShare, WrittenShareRecorder
from saematch.matching.store import MatchStore
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.suites import SaeFacts, SaeShelf
from saematch.texts.readers import Reader

A, B, C = (SaeKey("default", layer) for layer in (0, 1, 3))
PAIR = Pair(A, B)
N = {A: 20, B: 24, C: 18}


@pytest.fixture(scope="module")
def lm():
    return lively("Llama")


@pytest.fixture(scope="module")
def saes(lm):
    kinds = zip((A, B, C), ("relu", "topk", "jumprelu"), strict=True)
    return SaeShelf.of({k: fitting_sae(lm, k.layer, kind, N[k], k.layer) for k, kind in kinds})


TEXTS = texts_of(9, 1, repeat=True)


def text_pass(lm, texts=TEXTS, batch_size=4):
    return TextPass({"": Reader(lm, {"t": texts.batches(batch_size)})}, Models(), CPU)


def arm_of(n_candidates, k=20, **settings):
    return Arm("threshold", WrittenShare(n_candidates), TopK(k), **settings)


def scores_of(lm, saes, folder, pair, n_candidates, batch_size=4):
    """Return the written shares of a pair as a dense matrix; NaN for pairs that are unknown."""
    arm = arm_of(n_candidates)
    texts = text_pass(lm, batch_size=batch_size)
    activity = record_activity(saes, {"a": [pair]}, {"a": arm}, texts, folder)
    candidates = Evidence(activity).similarity(saes, pair, arm)
    scores = torch.full((candidates.n_source, candidates.n_target), torch.nan).double()
    scores[candidates.rows, candidates.columns] = candidates.scores
    return scores


@pytest.fixture(scope="module")
def plain(saes):
    """The written share in float64 from a forward of each text, as a dense matrix."""
    lm = lively("Llama").double()

    def shares(pair):
        source, target = (saes[key].to("cpu", torch.float64) for key in pair)
        written = source.W_dec @ target.W_enc
        sums, counts = torch.zeros_like(written), torch.zeros(source.n_features).double()
        for batch in TEXTS.batches(1):
            hidden, _ = lm.capture(batch.ids, tuple(key.layer for key in pair))
            f, z = (
                sae.encode(hidden[key.layer][batch.counts])
                for sae, key in zip((source, target), pair, strict=True)
            )
            inverse = torch.where(z > 0, 1 / z, 0.0)
            sums += torch.einsum("ti,ij,tj->ij", f, written, inverse)
            counts += (f > 0).sum(dim=0)
        return sums / counts.clamp(min=1)[:, None]

    return shares


@pytest.fixture(params=[1, written_share.NUMBERS_AT_ONCE])
def chunks(request, monkeypatch):
    """One token at a time, or all together."""
    monkeypatch.setattr(written_share, "NUMBERS_AT_ONCE", request.param)


@pytest.mark.parametrize("pair", [PAIR, Pair(B, C), Pair(A, C)])
@pytest.mark.usefixtures("chunks")
def test_scores_are_those_of_a_dense_computation(lm, saes, plain, tmp_path, pair):
    scores = scores_of(lm, saes, tmp_path, pair, n_candidates=24)
    expected = plain(pair)
    assert (expected < 0).any()
    torch.testing.assert_close(scores.nan_to_num(), expected, rtol=1e-5, atol=1e-5)
    assert (expected[scores.isnan()] == 0).all(), "pairs that are never active together"


def test_bounded_candidates_are_the_largest_sums_of_a_batch(lm, saes, plain, tmp_path):
    """With one batch they are exact; with several, each score is at most its true value."""
    expected = plain(PAIR)
    scores = scores_of(lm, saes, tmp_path, PAIR, n_candidates=3, batch_size=10)
    scored = ~scores.isnan()
    assert (scored.sum(dim=1) <= 3).all()
    torch.testing.assert_close(scores[scored], expected[scored], rtol=1e-5, atol=1e-5)
    for row in torch.nonzero(scored.any(dim=1)).flatten().tolist():
        assert expected[row][scored[row]].min() >= expected[row][~scored[row]].max() - 1e-5
    several = scores_of(lm, saes, tmp_path, PAIR, n_candidates=3, batch_size=2)
    assert ((~several.isnan()).sum(dim=1) <= 3).all()
    agreement = (several.nan_to_num() - expected)[~several.isnan()].abs() < 1e-5
    assert 0 < agreement.sum() < len(agreement), "shares in some batches are lost"


def test_halves_of_a_batch_add_up(lm, saes, tmp_path):
    recorder = WrittenShareRecorder(tmp_path, (PAIR, Pair(B, C)), 24)
    (batch,) = TEXTS.batches(10)
    parts = [slice(4), slice(4, 10)]
    halves = [
        recorder.record(
            forward_of(
                lm,
                replace(batch, **{n: getattr(batch, n)[p] for n in ("ids", "counts", "lengths")}),
                saes,
            )
        )
        for p in parts
    ]
    joined, whole = recorder.join(*halves, 4), recorder.record(forward_of(lm, batch, saes))
    assert joined.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(joined[name], tensor, rtol=1e-4, atol=1e-5)


def test_matches_are_stored_under_the_texts_and_settings(lm, saes, tmp_path):
    def matched(folder, arm, texts=TEXTS):
        activity = record_activity(
            saes, {"a": [PAIR]}, {"a": arm}, text_pass(lm, texts), tmp_path / "activity"
        )
        store = MatchStore(tmp_path / "matches", Evidence(activity))
        match_pairs(saes, (PAIR,), {"a": arm}, store, tmp_path / folder)
        return dict(store.counts)

    arm = arm_of(24)
    assert matched("1", arm) == {"solved": 1}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "activity").iterdir()}
    assert matched("2", arm) == {"read": 1}
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "activity").iterdir()}
    assert files == after, "the kept activity is read"
    assert matched("3", arm, texts_of(9, 2)) == {"solved": 1}
    assert matched("4", arm_of(12)) == {"solved": 1}
    assert matched("5", arm_of(24, k=3)) == {"solved": 1}
    assert matched("6", arm) == {"read": 1}


def test_a_composed_match_reads_the_activity_of_each_step(lm, saes, tmp_path):
    arm, far = arm_of(24, k=18, compose=True), Pair(A, C)
    activity = record_activity(
        saes, {"a": [(A, B, C)]}, {"a": arm}, text_pass(lm), tmp_path / "activity"
    )
    store = MatchStore(tmp_path / "matches", Evidence(activity))
    matches = match_pairs(saes, (PAIR, Pair(B, C), far), {"a": arm}, store, tmp_path)
    steps = [matches.by_arm["a"][pair] for pair in (PAIR, Pair(B, C))]
    torch.testing.assert_close(
        dense(matches.by_arm["a"][far]), dense(steps[0].compose(steps[1], most=20))
    )
    assert store.counts["solved"] == 2


def test_an_objective_of_weights_reads_no_activity(lm, saes, tmp_path):
    arm = Arm("threshold", DecoderCosine(), TopK(3))
    activity = record_activity(saes, {"a": [PAIR]}, {"a": arm}, text_pass(lm), tmp_path)
    assert isinstance(Evidence(activity).similarity(saes, PAIR, arm), Factors)
    assert activity.identity(arm) == []
    assert not list(tmp_path.iterdir())


def test_pairs_without_a_written_share_are_refused(saes):
    facts = {key: saes.facts[key] for key in (A, B)}
    share = WrittenShare()
    assert share.refusal(facts[A], facts[B]) is None
    assert "layer 1 writes nothing to layer 0" in share.refusal(facts[B], facts[A])
    named = [
        replace(fact, origin=replace(fact.origin, model_name=name))
        for fact, name in zip(facts.values(), ("x", "y"), strict=True)
    ]
    assert "one language model, not of x and y" in share.refusal(*named)
    narrow = SaeFacts.of(random_sae(1, d_model=8, layer=1))
    assert "d_model" in share.refusal(facts[A], narrow)

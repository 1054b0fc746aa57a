"""Objectives from activity agree with dense computations, and share one recording."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluations import CPU, forward_of
from interventions import fitting_sae, lively, texts_of
from matches import dense
from saematch.core.pairs import Pair, SaeKey
from saematch.lm.source import LmSource
from saematch.matching.activity import record_activity
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.matchers import TopK
from saematch.matching.matches import match_pairs
from saematch.matching.objectives import co_active
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.jaccard import Jaccard
from saematch.matching.objectives.necessity import Necessity
from saematch.matching.objectives.pearson import Pearson
from saematch.matching.objectives.sufficiency import Sufficiency
from saematch.matching.objectives.written_share import WrittenShare
from saematch.matching.store import MatchStore
from saematch.sae.codes import CodesRecorder
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.sources.source import ZooSaes
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import tokenise

A, B, C = (SaeKey("default", layer) for layer in (0, 1, 3))
PAIR = Pair(A, B)
N = {A: 20, B: 24, C: 18}
TEXTS = {"t": texts_of(9, 1, repeat=True), "u": texts_of(4, 3)}
OBJECTIVES = (Pearson, Jaccard, Necessity, Sufficiency, WrittenShare)


@pytest.fixture(scope="module")
def lm():
    return lively("Llama")


@pytest.fixture(scope="module")
def saes(lm):
    kinds = zip((A, B, C), ("relu", "topk", "jumprelu"), strict=True)
    return SaeShelf.of({k: fitting_sae(lm, k.layer, kind, N[k], k.layer) for k, kind in kinds})


def text_pass(lm, texts=TEXTS, batch_size=4):
    batches = {name: of_set.batches(batch_size) for name, of_set in texts.items()}
    return TextPass({"": Reader(lm, batches)}, Models(), CPU)


def arm_of(objective, k=20, **settings):
    return Arm("threshold", objective, TopK(k), **settings)


def scores_of(lm, saes, folder, pair, objective):
    """Return the scores of a pair as a dense matrix; NaN for pairs that are not candidates."""
    arm = arm_of(objective)
    activity = record_activity(saes, {"a": [pair]}, {"a": arm}, text_pass(lm), folder)
    return matrix(Evidence(activity).similarity(saes, pair, arm))


def matrix(candidates: Candidates):
    keys = candidates.rows * candidates.n_target + candidates.columns
    assert (keys[1:] > keys[:-1]).all(), "sorted, without duplicates"
    scores = torch.full((candidates.n_source, candidates.n_target), torch.nan).double()
    scores[candidates.rows, candidates.columns] = candidates.scores
    return scores.numpy()


def by_hand(objective, f, z, written):
    """Return the scores and numbers of common tokens from dense activations in float64."""
    active, other = f > 0, z > 0
    n_both = (active[:, :, None] & other[:, None, :]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if objective is Pearson:
            n = f.shape[1]
            scores = np.corrcoef(f.T, z.T)[:n, n:]
        elif objective is WrittenShare:
            shares = np.where(other[:, None, :], f[:, :, None] * written / z[:, None, :], 0)
            scores = shares.sum(axis=0) / active.sum(axis=0)[:, None]
        else:
            counts = {
                Jaccard: (active[:, :, None] | other[:, None, :]).sum(axis=0),
                Necessity: other.sum(axis=0)[None, :],
                Sufficiency: active.sum(axis=0)[:, None],
            }
            scores = n_both / counts[objective]
    return scores, n_both


@pytest.fixture(scope="module")
def plain(saes):
    """Return the dense scores of a pair, from a forward of each text in float64."""
    lm = lively("Llama").double()

    def scores(objective, pair):
        source, target = (saes[key].to("cpu", torch.float64) for key in pair)
        values = []
        for of_set in TEXTS.values():
            for batch in of_set.batches(1):
                hidden, _ = lm.capture(batch.ids, tuple(key.layer for key in pair))
                states = [hidden[key.layer][batch.counts] for key in pair]
                values.append((source.encode(states[0]), target.encode(states[1])))
        f, z = (torch.cat(side).numpy() for side in zip(*values, strict=True))
        return by_hand(objective, f, z, (source.W_dec @ target.W_enc).numpy())

    return scores


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request, monkeypatch):
    """Compute a block of all features from one chunk, or one feature at a time from each batch."""
    if request.param == "in pieces":
        monkeypatch.setattr(co_active, "CELLS_AT_ONCE", 1)
        monkeypatch.setattr(co_active, "ENTRIES_AT_ONCE", 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair", [PAIR, Pair(B, C), Pair(A, C)])
@pytest.mark.usefixtures("pieces")
def test_scores_are_those_of_a_dense_computation(lm, saes, plain, tmp_path, objective, pair):
    expected, n_both = plain(objective, pair)
    scores = scores_of(lm, saes, tmp_path, pair, objective(24, 2))
    assert np.array_equal(~np.isnan(scores), n_both >= 2)
    np.testing.assert_allclose(scores[n_both >= 2], expected[n_both >= 2], rtol=1e-5, atol=1e-5)
    assert (n_both < 2).any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.usefixtures("pieces")
def test_bounded_candidates_are_the_best_of_all_pairs(lm, saes, tmp_path, objective):
    everything = scores_of(lm, saes, tmp_path, PAIR, objective(24, 1))
    few = scores_of(lm, saes, tmp_path, PAIR, objective(3, 1))
    for of_all, of_few in zip(everything, few, strict=True):
        kept = ~np.isnan(of_few)
        assert np.array_equal(of_few[kept], of_all[kept])
        best = np.sort(of_all[~np.isnan(of_all)])[::-1][:3]
        assert np.array_equal(np.sort(of_few[kept])[::-1], best)


def test_halves_of_a_batch_are_put_together(lm, saes, tmp_path):
    recorder = CodesRecorder(tmp_path, (A, B, C))
    (batch,) = TEXTS["t"].batches(10)
    halves = []
    for part in (slice(4), slice(4, 10)):
        half = {name: getattr(batch, name)[part] for name in ("ids", "counts", "lengths")}
        halves.append(recorder.record(forward_of(lm, replace(batch, **half), saes)))
    joined, whole = recorder.join(*halves, 4), recorder.record(forward_of(lm, batch, saes))
    assert (
        joined.keys()
        == whole.keys()
        == recorder.only((A, B, C)).record(forward_of(lm, batch, saes)).keys()
    )
    for name, tensor in whole.items():
        assert joined[name].dtype == tensor.dtype
        torch.testing.assert_close(joined[name], tensor, rtol=1e-4, atol=1e-5)
    assert {tensor.dtype for tensor in whole.values()} == {
        torch.int32, torch.uint16, torch.float32,
    }  # fmt: skip


def test_objectives_share_one_recording_of_all_pairs(lm, saes, tmp_path):
    backwards = Pair(C, B)
    arms = {objective.__name__: arm_of(objective()) for objective in OBJECTIVES}
    paths = {name: [PAIR, backwards] for name in arms} | {"WrittenShare": [PAIR]}
    activity = record_activity(saes, paths, arms, text_pass(lm), tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4, "one for each batch"
    recordings = [activity.of(arm) for arm in arms.values()]
    assert all(recording is recordings[0] for recording in recordings)
    assert sorted(activity.identity(arms["Jaccard"])) == sorted(path.stem for path in files)
    next(iter(files)).unlink()
    again = record_activity(saes, paths, arms, text_pass(lm), tmp_path)
    changed = [path for path in files if path.stat().st_mtime_ns != files[path]]
    assert changed == [next(iter(files))], "only the missing file is made again"
    pair = Pair(B, C)
    for arm in arms.values():
        first, second = (Evidence(part).similarity(saes, PAIR, arm) for part in (activity, again))
        assert torch.equal(first.scores, second.scores)
    with pytest.raises(KeyError):
        unknown = Pair(SaeKey("x", 0), pair.target)
        Evidence(activity).similarity(saes, unknown, arms["Jaccard"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fold_does_not_change_scores(lm, saes, tmp_path, objective):
    arms = {fold: Arm(fold, objective(), TopK(3)) for fold in ("threshold", "decoder_norm", "none")}
    paths = {name: [PAIR] for name in arms}
    activity = record_activity(saes, paths, arms, text_pass(lm), tmp_path)
    of_folds = [matrix(Evidence(activity).similarity(saes, PAIR, arm)) for arm in arms.values()]
    for scores in of_folds[1:]:
        np.testing.assert_array_equal(scores, of_folds[0])


def test_candidates_on_the_zoo_are_the_best_of_dense_statistics(tmp_path):
    source = ZooSaes("mixed", 1024, 20)
    pair = Pair.of_layers(4, 5)
    saes = SaeShelf.of({key: source.load(key.layer) for key in pair})
    texts = ZooTexts(("prose", "code"), 1, 64).load()
    lm = LmSource("zoo", "saematch-zoo").load()
    batches = {of_set.name: tuple(tokenise(of_set, lm, 64).batches(4)) for of_set in texts}
    arms = {objective.__name__: arm_of(objective(10)) for objective in OBJECTIVES}
    activity = record_activity(
        saes, {name: [pair] for name in arms}, arms,
        TextPass({"": Reader(lm, batches)}, Models(), CPU), tmp_path,
    )  # fmt: skip
    f, z = (
        torch.cat([
            saes[key].encode(lm.states(batch.ids, (key.layer,))[key.layer][batch.counts]).double()
            for of_set in batches.values() for batch in of_set
        ]).numpy()
        for key in pair
    )  # fmt: skip
    written = (saes[pair.source].W_dec.double() @ saes[pair.target].W_enc.double()).numpy()
    live = np.flatnonzero(f.any(axis=0))[:60]
    for objective in OBJECTIVES:
        arm = arms[objective.__name__]
        scores = matrix(Evidence(activity).similarity(saes, pair, arm))
        expected, n_both = by_hand(objective, f[:, live], z, written[live])
        for of_feature, of_all, n in zip(scores[live], expected, n_both, strict=True):
            best = np.sort(of_all[(n >= arm.objective.floor) & ~np.isnan(of_all)])[::-1][:10]
            kept = np.sort(of_feature[~np.isnan(of_feature)])[::-1]
            np.testing.assert_allclose(kept, best, rtol=1e-4, atol=1e-5)


def test_matches_are_stored_under_the_texts_and_settings(lm, saes, tmp_path):
    def matched(folder, arm, seed=1):
        texts = text_pass(lm, {"t": texts_of(9, seed)})
        activity = record_activity(saes, {"a": [PAIR]}, {"a": arm}, texts, tmp_path / "activity")
        store = MatchStore(tmp_path / "matches", Evidence(activity))
        match_pairs(saes, (PAIR,), {"a": arm}, store, tmp_path / folder)
        return dict(store.counts)

    arm = arm_of(WrittenShare(24))
    assert matched("1", arm) == {"solved": 1}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "activity").iterdir()}
    assert matched("2", arm) == {"read": 1}
    assert matched("3", arm_of(WrittenShare(12))) == {"solved": 1}
    assert matched("4", arm_of(WrittenShare(24, 2))) == {"solved": 1}
    assert matched("5", arm_of(Jaccard(24))) == {"solved": 1}
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "activity").iterdir()}
    assert files == after, "the kept activity serves all objectives"
    assert matched("6", arm, seed=2) == {"solved": 1}
    assert matched("7", arm_of(WrittenShare(24), k=3)) == {"solved": 1}
    assert matched("8", arm) == {"read": 1}


def test_a_composed_match_reads_the_activity_of_each_step(lm, saes, tmp_path):
    arm, far = arm_of(WrittenShare(24), k=18, compose=True), Pair(A, C)
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

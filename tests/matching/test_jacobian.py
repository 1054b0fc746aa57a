"""Mean Jacobians of the calibration texts, and arms that compare transported vectors."""

import math
from dataclasses import replace

import pytest
import torch

from architectures import build
from conftest import random_sae
from evaluations import CPU, forward_of
from interventions import FIRST, lively, plain_jacobian, texts_of
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.matching import jacobian
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.jacobian import Gap, Jacobians, gaps_of, record_jacobians
from saematch.matching.jacobian_recorder import UNSAMPLED, JacobianRecorder, probes
from saematch.matching.matchers import Optimal, TopK
from saematch.matching.matches import match_pairs, matching_refusals
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.parts import Parts
from saematch.matching.objectives.written_share import WrittenShare
from saematch.matching.store import MatchStore
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader

A, B, C = (SaeKey("default", layer) for layer in (0, 1, 3))
AB, BC, AC = Pair(A, B), Pair(B, C), Pair(A, C)
TEXTS = {"s": texts_of(4, 1), "t": texts_of(5, 2)}
COSINE = Arm("none", DecoderCosine(), TopK(1), transported=True)


def text_pass(lm, batch_size=4, texts=TEXTS, label=""):
    tokens = {name: of_set.batches(batch_size) for name, of_set in texts.items()}
    return TextPass({"": Reader(lm, tokens)}, Models(), CPU)


def recorded(lm, folder, *paths, arm=COSINE, **settings):
    return record_jacobians({"a": paths}, {"a": arm}, text_pass(lm, **settings), folder)


def tokens_of(texts=TEXTS):
    """Return the ids of a text and the position of each token that is sampled, in any order."""
    return [
        (ids[None], position)
        for of_set in texts.values()
        for ids, counts in zip(
            of_set.ids.split(of_set.lengths.tolist()),
            of_set.counts.split(of_set.lengths.tolist()),
            strict=True,
        )
        for position in range(FIRST, len(ids))
        if counts[position]
    ]


@pytest.fixture(scope="module")
def lm():
    return lively("Llama")


@pytest.fixture(scope="module")
def plain():
    """The Jacobians of all tokens by gap, in float64 from forwards of the whole model."""
    lm = lively("Llama").double()
    return {
        ends: torch.stack(
            [plain_jacobian(lm, ids, *ends, 0, position) for ids, position in tokens_of()]
        )
        for ends in ((0, 1), (1, 3))
    }


@pytest.fixture
def exact(monkeypatch):
    """All tokens are read, in two stages."""
    monkeypatch.setattr(jacobian, "PILOT", 5)
    return replace(COSINE, jacobian_tolerance=1e-6)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_means_are_those_of_all_tokens(lm, plain, exact, tmp_path, caplog, batch_size):
    jacobians = recorded(lm, tmp_path, (A, B), (A, C), arm=exact, batch_size=batch_size)
    assert [tuple(gap) for gap in jacobians.means] == [("", 0, 1), ("", 1, 3)]
    for gap, mean in jacobians.means.items():
        expected = plain[gap.source, gap.target]
        n, J = len(expected), expected.mean(dim=0)
        torch.testing.assert_close(mean.J, J, rtol=1e-3, atol=1e-4)
        variance = (expected - J).square().sum() / (n - 1) / J.square().sum()
        assert mean.n_tokens == n
        assert mean.error == pytest.approx(math.sqrt(float(variance) / n), rel=1e-3)
    product = plain[1, 3].mean(dim=0) @ plain[0, 1].mean(dim=0)
    torch.testing.assert_close(jacobians.between(AC), product, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(jacobians.between(BC), jacobians.means[Gap("", 1, 3)].J)
    (warning,) = caplog.messages
    assert "2 of 2 mean Jacobians have a relative standard error above" in warning
    worst = max(jacobians.means.values(), key=lambda mean: mean.error)
    assert f"the largest is {worst.error:.3g}" in warning
    assert jacobians.facts()[0]["n_tokens"] == len(plain[0, 1])


def test_the_pilot_sets_the_number_of_tokens(lm, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jacobian, "PILOT", 30)
    pilot = recorded(lm, tmp_path, (A, B), arm=replace(COSINE, jacobian_tolerance=1.0))
    (first,) = pilot.means.values()
    assert first.n_tokens == 30
    assert not caplog.messages
    tolerance = math.sqrt(first.relative_variance / 39.5)  # 47.4 tokens, before rounding up
    jacobians = recorded(lm, tmp_path, (A, B), arm=replace(COSINE, jacobian_tolerance=tolerance))
    (mean,) = jacobians.means.values()
    assert mean.n_tokens == math.ceil(1.2 * first.relative_variance / tolerance**2) == 48
    assert set(first.files) < set(mean.files), "the pilot is part of the mean"
    assert set(pilot.identity(AB)) < set(jacobians.identity(AB))


def test_few_tokens_of_many_batches_are_at_hand_unless_more_are_needed(
    lm, plain, tmp_path, monkeypatch, exact
):
    """Whole batches in a random order."""
    monkeypatch.setattr(jacobian, "AT_HAND", 20)
    loose = replace(exact, jacobian_tolerance=1e3)
    pilot, mean = (
        recorded(lm, tmp_path, (A, B), arm=arm, batch_size=1).means[Gap("", 0, 1)]
        for arm in (loose, exact)
    )
    assert (pilot.n_tokens, len(pilot.files), len(mean.files)) == (5, 4, 4 + 9)
    n = len(tokens_of())
    assert 0.7 * n < mean.n_tokens <= n, "those of other batches have priorities after the pilot's"
    expected = plain[0, 1].mean(dim=0)
    error = torch.linalg.norm(mean.J - expected) / torch.linalg.norm(expected)
    assert error < 0.1
    again = recorded(lm, tmp_path, (A, B), arm=exact, batch_size=1)
    assert again.means[Gap("", 0, 1)].files == mean.files


def test_equal_texts_are_read_together(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(jacobian, "PILOT", 2)
    text = texts_of(1, 1)
    (once,) = recorded(lm, tmp_path / "1", (A, B), texts={"s": text}).means.values()
    copies = {"s": text, "t": replace(
        text, ids=text.ids.repeat(5), counts=text.counts.repeat(5), lengths=text.lengths.repeat(5)
    )}  # fmt: skip
    (often,) = recorded(lm, tmp_path / "2", (A, B), texts=copies).means.values()
    assert often.n_tokens == 6 * once.n_tokens
    torch.testing.assert_close(often.J, once.J, rtol=1e-4, atol=1e-5)


def test_texts_without_a_token_are_refused(lm, tmp_path):
    short = texts_of(3, 1)
    short = replace(short, counts=torch.zeros_like(short.counts))
    with pytest.raises(InputError, match="position 2 or later"):
        recorded(lm, tmp_path, (A, B), texts={"t": short})


def test_a_single_token_has_no_error(lm, tmp_path, caplog):
    (ids, position), *_ = tokens_of()
    of_set = texts_of(6, 1)
    counts = torch.zeros_like(of_set.counts)
    counts[position] = True
    jacobians = recorded(lm, tmp_path, (A, B), texts={"s": replace(of_set, counts=counts)})
    (mean,) = jacobians.means.values()
    expected = plain_jacobian(lm, ids, 0, 1, 0, position)
    torch.testing.assert_close(mean.J.float(), expected, rtol=1e-3, atol=1e-4)
    assert math.isnan(mean.error)
    assert jacobians.facts()[0]["relative_error"] is None
    assert "nan" in caplog.text


def test_halves_of_a_batch_add_up(lm, tmp_path):
    recorder = JacobianRecorder(tmp_path, 0, 1, 0, UNSAMPLED)
    (batch,) = TEXTS["t"].batches(10)
    saes = probes([0], lm.d_model)
    parts = [slice(3), slice(3, 5)]
    first, second = (
        recorder.record(
            forward_of(
                lm,
                replace(batch, **{n: getattr(batch, n)[p] for n in ("ids", "counts", "lengths")}),
                saes,
            )
        )
        for p in parts
    )
    joined, whole = recorder.join(first, second, 3), recorder.record(forward_of(lm, batch, saes))
    assert joined["n"] == whole["n"] == len(tokens_of({"t": TEXTS["t"]}))
    for name, tensor in whole.items():
        torch.testing.assert_close(joined[name], tensor, rtol=1e-4, atol=1e-4)


def test_each_gap_is_recorded_once_for_all_pairs_and_saes():
    steps = [Pair(SaeKey(s, a), SaeKey(s, b)) for s, a, b in
             (("x", 0, 2), ("y", 1, 2), ("y", 5, 6), ("z", 1, 4))]  # fmt: skip
    assert gaps_of(steps, Models({"z": "z"})) == {
        "": [Gap("", 0, 1), Gap("", 1, 2), Gap("", 5, 6)],
        "z": [Gap("z", 1, 4)],
    }


def test_only_arms_with_transported_vectors_read_texts(lm, tmp_path):
    arms = {"a": replace(COSINE, transported=False), "b": COSINE}
    none = record_jacobians({"a": [(A, B)], "b": []}, arms, text_pass(lm), tmp_path)
    assert not none.means
    assert not list(tmp_path.iterdir())
    assert Evidence(jacobians=none).identity(AB, arms["a"]) == []
    assert arms["a"].reads == ("weights",)
    assert COSINE.reads == ("weights", "texts")


# ---- transported vectors


def rotation(seed, d=32):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=g))[0]


@pytest.fixture(scope="module")
def turning():
    """A model whose blocks 1 and 2 rotate the hidden state, and the rotation of both."""
    lm = build("Llama")
    R = {1: rotation(1), 2: rotation(2)}

    def turned(forward, R):
        return lambda *args, **kwargs: forward(*args, **kwargs) @ R.T

    for layer, of_layer in R.items():
        lm.blocks[layer].forward = turned(lm.blocks[layer].forward, of_layer)
    return lm, R[2] @ R[1]


def planted(R, seed=0):
    """Return SAEs of layers 0 and 2 whose features are equal up to rotation and order."""
    source = random_sae(seed, d_model=32, n_features=40, layer=0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    target = replace(
        source,
        W_dec=(source.W_dec @ R.T)[order],
        W_enc=(R @ source.W_enc)[:, order],
        b_enc=source.b_enc[order],
        threshold=source.threshold[order],
        origin=replace(source.origin, layer=2, sae_id="rotated"),
    )
    return SaeShelf.of(
        {SaeKey("default", 0): source, SaeKey("default", 2): target}
    ), order.argsort()


@pytest.mark.parametrize(
    "arm",
    [COSINE, Arm("threshold", Parts(), Optimal(), transported=True)],
    ids=["cosine", "folded"],
)
def test_a_rotated_basis_is_recovered_by_transported_vectors_only(turning, tmp_path, arm):
    lm, R = turning
    saes, truth = planted(R)
    pair = Pair(*saes)
    jacobians = recorded(lm, tmp_path, tuple(pair), arm=arm)
    evidence = Evidence(jacobians=jacobians)
    similarity = evidence.similarity(saes, pair, arm)
    match = arm.match(saes[pair.source], saes[pair.target], similarity)
    assert (match.columns == truth).all()
    plain = replace(arm, transported=False)
    match = plain.match(saes[pair.source], saes[pair.target])
    assert (match.columns == truth).double().mean() < 0.2


def test_composed_arms_transport_each_step(turning, tmp_path):
    lm, R = turning
    saes, truth = planted(R)
    middle = SaeKey("default", 1)
    saes = SaeShelf.of({**saes, middle: replace(
        saes[SaeKey("default", 0)],
        W_dec=saes[SaeKey("default", 0)].W_dec @ rotation(1).T,
        W_enc=rotation(1) @ saes[SaeKey("default", 0)].W_enc,
        origin=replace(saes[SaeKey("default", 0)].origin, layer=1, sae_id="middle"),
    )})  # fmt: skip
    arm, pair = replace(COSINE, compose=True), Pair.of_layers(0, 2)
    path = tuple(SaeKey("default", layer) for layer in (0, 1, 2))
    store = MatchStore(tmp_path / "m", Evidence(jacobians=recorded(lm, tmp_path, path, arm=arm)))
    matches = match_pairs(saes, (pair,), {"a": arm}, store, tmp_path / "1")
    assert (matches.by_arm["a"][pair].columns == truth).all()


def test_matches_are_stored_under_the_recorded_jacobians(turning, tmp_path):
    lm, R = turning
    saes, _ = planted(R)
    pair = Pair(*saes)

    def counts(arm, texts=TEXTS):
        jacobians = recorded(lm, tmp_path / "j", tuple(pair), arm=arm, texts=texts)
        store = MatchStore(tmp_path / "m", Evidence(jacobians=jacobians))
        match_pairs(saes, (pair,), {"a": arm}, store, tmp_path / "1")
        return dict(store.counts)

    assert counts(COSINE) == {"solved": 1}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "j").iterdir()}
    assert counts(COSINE) == {"read": 1}
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "j").iterdir()}
    assert counts(replace(COSINE, transported=False)) == {"solved": 1}
    assert counts(COSINE, {"s": texts_of(5, 9)}) == {"solved": 1}


def test_pairs_without_a_forward_path_are_refused():
    def refused(source, target):
        facts = SaeShelf.of({A: source, B: target}).facts
        arms = {"plain": replace(COSINE, transported=False), "transported": COSINE}
        refusals = matching_refusals(facts, (AB,), arms)
        assert all(refusal.arm == "transported" for refusal in refusals)
        return " ".join(refusal.reason for refusal in refusals)

    early, late = random_sae(0, layer=0), random_sae(1, layer=1)
    assert refused(early, late) == ""
    assert "no block leads from layer 1 to layer 0" in refused(late, early)
    assert "no block leads from layer 0 to layer 0" in refused(early, random_sae(1, layer=0))
    named = [
        replace(sae, origin=replace(sae.origin, model_name=name))
        for sae, name in ((early, "x"), (late, "y"))
    ]
    assert "one language model, not of x and y" in refused(*named)
    outside = [replace(s, origin=replace(s.origin, site="mlp_out")) for s in (early, late)]
    assert "mlp_out" in refused(*outside)


def test_an_objective_that_reads_activity_has_no_vectors_to_transport():
    with pytest.raises(
        InputError, match="WrittenShare does not read weights, so it has no vectors"
    ):
        Arm("none", WrittenShare(), TopK(3), transported=True)


def test_a_jacobian_of_a_pair_is_its_gaps_product_in_order():
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 3, generator=g).double() for _ in range(2))
    means = {
        Gap("", n, n + 1): jacobian.MeanJacobian(J, 1, 0.0, ())
        for n, J in ((1, second), (0, first))
    }
    jacobians = Jacobians(means | {Gap("m", 0, 2): means[Gap("", 0, 1)]}, Models({"w": "m"}))
    torch.testing.assert_close(jacobians.between(Pair.of_layers(0, 2)), second @ first)
    torch.testing.assert_close(jacobians.between(Pair.of_layers(0, 1)), first)
    other = Pair(SaeKey("w", 0), SaeKey("w", 2))
    torch.testing.assert_close(jacobians.between(other), first)

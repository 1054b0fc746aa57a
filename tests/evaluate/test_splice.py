"""The evaluation against a plain one: dense features, hooks, the whole model every time."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import N_LAYERS, TEXTS
from evaluations import forward_of, recorded, subject_of, sums_of, tables_of
from matches import dense, partners
from saematch.core.pairs import NO_ARM, Pair, SaeKey, pair_of
from saematch.core.tables import Tables
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.skipping import Skipping, canonical
from saematch.evaluate.splice import Splice, SpliceRecorder
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import MatchSet, match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.params import SaeOrigin
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.sources import TextSet
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 3))
ARMS = {
    "a": Arm("threshold", Parts(), Random(1), ("permute", "permute_raw"), (0.0, 0.4, 1.0)),
    "b": Arm("threshold", Parts(), Random(2)),
    "like_a": Arm("threshold", Parts(), Random(1)),
}
STRATEGIES = ("reconstruct_previous", "reconstruct_current", "drop")
SKIPPING = Skipping(STRATEGIES)
BOTH = (CoActivation(), SKIPPING)


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def matched(tiny, tmp_path_factory):
    """The matches of a run, before its texts are read."""
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    assert source.layers() == list(range(N_LAYERS))
    saes = {SaeKey("default", layer): source.load(layer) for layer in range(N_LAYERS)}
    folder = tmp_path_factory.mktemp("matches")
    matches = match_pairs(saes, PAIRS, ARMS, MatchStore(folder / "cache"), folder)
    return subject_of(saes, matches, ARMS, folder / "sums")


@pytest.fixture(scope="module")
def batches(lm):
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(2)
    assert len({batch.ids.shape for batch in batches}) > 1, "texts of several lengths"
    return batches


@pytest.fixture(scope="module")
def subject(matched, lm, batches):
    return recorded(matched, BOTH, lm, {"t": batches})


@pytest.fixture(scope="module")
def tables(subject):
    return tables_of(subject, SKIPPING)


@pytest.fixture(scope="module")
def rows(tables):
    return tables.rows("strategies")


def sums(subject: Subject) -> dict[str, torch.Tensor]:
    """Return what both evaluations recorded."""
    parts = (sums_of(recording) for recording in subject.recordings.values())
    return {name: value for part in parts for name, value in part.items()}


def record_in(folder, matched, lm, batches, **trainer):
    """Record in another folder, and return the sums."""
    spec = TrainerSpec(**{"accelerator": "cpu", **trainer})
    subject = dataclasses.replace(matched, folder=folder)
    return sums(recorded(subject, BOTH, lm, {"t": batches}, spec))


def staying(a, b, weights, quantile):
    """Return the features that keep their own decoder vectors: all but those of least error."""
    a, b = fold(a, "threshold"), fold(b, "threshold")
    errors = (a.W_dec - weights @ b.W_dec).square().mean(dim=1)
    matched = weights.any(dim=1)
    errors[~matched] = torch.inf
    return torch.argsort(errors)[round(quantile * int(matched.sum())) :]


def plain(subject, lm, row):
    """Return x_hat, x and the losses of a row of ``strategies``, text by text."""
    pair, strategy, quantile = pair_of(row), row["strategy"], row["quantile"]
    source, target = pair.source.layer, pair.target.layer
    a, b = subject.saes[pair.source], subject.saes[pair.target]
    texts = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        x_t = hidden[source + 1][0, 1:]
        seen = []
        hook = lm.blocks[target].register_forward_hook(lambda m, i, o, s=seen: s.append(o))
        lm.model(input_ids=ids)
        hook.remove()
        x = seen[0][0, 1:]
        if strategy.startswith("permute"):
            by = {"permute": "threshold", "permute_raw": "decoder_norm"}[strategy]
            match = subject.matches.by_arm[row["arm"]][pair]
            features = fold(a, by).encode(x_t)
            weights = dense(match).float()
            stay = torch.zeros_like(features)
            if quantile is not None:
                own = staying(a, b, weights, quantile)
                stay[:, own] = features[:, own]
            x_hat = fold(b, by).decode((features - stay) @ weights) + stay @ fold(a, by).W_dec
        else:
            x_hat = {
                "reconstruct_previous": a.reconstruct(x_t),
                "reconstruct_current": b.reconstruct(x),
                "drop": x_t,
            }[strategy]
        replaced = torch.cat([seen[0][:, :1], x_hat[None]], dim=1)
        hook = lm.blocks[target].register_forward_hook(lambda m, i, o, r=replaced: r)
        logits = lm.model(input_ids=ids).logits[0]
        hook.remove()
        texts.append((x_hat, x, cross_entropy(logits[1:-1], ids[0, 2:], reduction="none")))
    return [torch.cat(part).double() for part in zip(*texts, strict=True)]


def test_every_cell_equals_the_plain_evaluation(matched, lm, rows):
    assert len(rows) == 2 * (2 * 4 + 1 + 1 + 3)
    of_arms = {("a", s, q) for s in ARMS["a"].decode for q in (None, *ARMS["a"].quantiles)}
    of_arms |= {("b", "permute", None), ("like_a", "permute", None)}
    cells = of_arms | {(NO_ARM, strategy, None) for strategy in STRATEGIES}
    assert {(pair_of(row), row["arm"], row["strategy"], row["quantile"]) for row in rows} == {
        (pair, *cell) for pair in PAIRS for cell in cells
    }
    for row in rows:
        x_hat, x, losses = plain(matched, lm, row)
        unexplained = (x_hat - x).var(dim=0, correction=0).sum()
        expected = 1 - unexplained / x.var(dim=0, correction=0).sum()
        assert row["explained_variance"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
        assert (row["n_texts"], row["n_tokens"], row["n_targets"]) == (5, len(x), len(losses))
        assert row["delta_loss_low"] <= row["delta_loss_high"]


def test_all_permuted_is_the_full_match_and_none_is_the_earlier_sae_with_the_later_bias(rows):
    """Equation 6 at its ends."""
    at = {(pair_of(r), r["arm"], r["strategy"], r["quantile"]): r for r in rows}
    for pair in PAIRS:
        for strategy in ("permute", "permute_raw"):
            none, partial, all_features, full = (
                at[pair, "a", strategy, q] for q in (0.0, 0.4, 1.0, None)
            )
            assert {k: v for k, v in all_features.items() if k != "quantile"} == {
                k: v for k, v in full.items() if k != "quantile"
            }
            assert none["explained_variance"] != partial["explained_variance"]
            previous = at[pair, "none", "reconstruct_previous", None]
            # the biases differ by a constant, which has no variance
            assert none["explained_variance"] == pytest.approx(previous["explained_variance"])
            assert none["loss"] != previous["loss"]


def test_what_several_ask_for_is_evaluated_once(matched):
    splices = SKIPPING.recorder(matched).splices
    permutes = [splice for splice in splices if splice.strategy.startswith("permute")]
    # of each pair: a by both strategies at q = 0.4 and whole, q = 0 once, b whole; like_a nothing
    assert len(permutes) == 2 * (2 * 2 + 1 + 1)
    assert len(splices) == 2 * (6 + 3)
    assert len(CoActivation().recorder(matched).matched) == 2 * 2


def suites_that_share(matched, suites):
    """Return the subject of suites ``{name: {layer: SAE}}``, each matched as arm ``b``."""
    saes = {SaeKey(name, layer): suite[layer] for name, suite in suites.items() for layer in (0, 1)}
    pairs = tuple(Pair.of_layers(0, 1, name) for name in suites)
    match = matched.matches.by_arm["b"][PAIRS[0]]
    matches = MatchSet(pairs, {"b": dict.fromkeys(pairs, match)})
    return subject_of(saes, matches, {"b": ARMS["b"]}, matched.folder)


def two_suites(matched):
    """Return SAEs by layer, and equal ones of another origin."""
    x = {key.layer: sae for key, sae in matched.saes.items()}
    y = {n: dataclasses.replace(sae, origin=SaeOrigin(n, "y", "")) for n, sae in x.items()}
    return x, y


def test_suites_share_what_does_not_depend_on_their_saes(matched):
    """Suite y has other SAEs than x, suite z those of x in all layers, suite v in one."""
    x, y = two_suites(matched)
    suites = {"x": x, "y": y, "z": x, "v": {0: x[0], 1: y[1]}}
    subject = suites_that_share(matched, suites)
    counting, skipping = (evaluation.recorder(subject) for evaluation in BOTH)
    assert list(counting.saes) == [("x", 0), ("x", 1), ("y", 0), ("y", 1)], "each is encoded once"
    assert len(counting.matched) == 3

    def evaluated(suite, strategy):
        pair = Pair.of_layers(0, 1, suite)
        match = subject.matches.of(pair)["b"] if strategy == "permute" else None
        splice = Splice(strategy, pair, "" if match is None else match.hash)
        return canonical(subject, splice, match)

    strategies = ("permute", *STRATEGIES)
    splices = {(suite, s): evaluated(suite, s) for suite in suites for s in strategies}
    assert set(splices.values()) == set(skipping.splices)
    for strategy in strategies:
        assert splices["z", strategy] == splices["x", strategy]
    assert splices["y", "drop"] == splices["x", "drop"]
    assert splices["v", "reconstruct_current"] == splices["y", "reconstruct_current"]
    assert len({splices[suite, "permute"] for suite in "xyv"}) == 3
    assert len({splices[suite, "reconstruct_previous"] for suite in "xyv"}) == 3, (
        "at a pair of its own"
    )


def test_a_suite_that_shares_saes_has_the_same_numbers(matched, lm, batches, tmp_path):
    x, y = two_suites(matched)
    suites = {"x": x, "v": {0: x[0], 1: y[1]}}  # the same numbers under two names
    subject = dataclasses.replace(suites_that_share(matched, suites), folder=tmp_path)
    subject = recorded(subject, BOTH, lm, {"t": batches})
    tables = Tables()
    for evaluation in BOTH:
        tables.join(tables_of(subject, evaluation))
    assert {"strategies", "activations", "layers"} <= tables.keys()
    for name in tables:
        table = tables.rows(name)
        unnamed = [
            {k: v for k, v in row.items() if k not in ("source_suite", "target_suite", "suite")}
            for row in table
        ]
        half = len(table) // 2
        assert unnamed[:half] == unnamed[half:], name


def test_delta_loss_is_against_the_same_tokens_of_the_original(lm, rows):
    losses = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        logits = lm.model(input_ids=ids).logits[0]
        losses.append(cross_entropy(logits[1:-1], ids[0, 2:], reduction="none"))
    original = torch.cat(losses).mean().item()
    for row in rows:
        assert row["loss_original"] == pytest.approx(original, rel=1e-5)
        assert row["delta_loss"] == pytest.approx(row["loss"] - original, abs=1e-6)


def test_contrasts_switch_one_thing(tables):
    """Equal matches differ by nothing, whatever text is left out."""
    rows = {(*(r[k] for k in ("source_layer", "arm", "strategy", "against_arm", "against_strategy",
                              "quantile")),): r for r in tables.rows("contrasts")}  # fmt: skip
    assert len(tables.rows("contrasts")) == len(rows) == 2 * (4 + 3 + 10 * 3)
    strategies = {(r["source_layer"], r["arm"], r["strategy"], r["quantile"]): r
                  for r in tables.rows("strategies")}  # fmt: skip
    for (start, arm, strategy, against, other, quantile), row in rows.items():
        expected = (
            strategies[start, arm, strategy, quantile]["delta_loss"]
            - strategies[start, against, other, None if against == "none" else quantile][
                "delta_loss"
            ]
        )
        assert row["delta_loss_difference"] == pytest.approx(expected, abs=1e-9)
        if (arm, against, strategy) == ("a", "like_a", "permute"):
            assert row["delta_loss_difference_low"] == row["delta_loss_difference_high"] == 0
        assert arm != "none"
        assert against == "none" or (arm == against) != (strategy == other)


def test_co_activation_equals_counting_by_hand(subject, lm):
    saes, counts = subject.saes, subject.counts
    hidden = {key.layer: [] for key in saes}
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        seen, _ = lm.capture(ids, tuple(hidden))
        for layer, x in seen.items():
            hidden[layer].append(x[0, 1:])
    states = {key: torch.cat(hidden[key.layer]) for key in saes}
    active = {key: saes[key].encode(x) > 0 for key, x in states.items()}
    tables = tables_of(subject, CoActivation())
    rows = tables.rows("activations")
    assert [row["dataset"] for row in rows] == ["t", "all"] * len(PAIRS) * len(ARMS)
    for row in rows:
        pair = pair_of(row)
        match = subject.matches.by_arm[row["arm"]][pair]
        own, partner = active[pair.source], active[pair.target][:, partners(match)]
        both = (own & partner).sum().item()
        assert row["matching_score"] == pytest.approx(both / own.sum().item())
        assert row["n_live"] + row["n_dead"] == own.shape[1]
        assert torch.equal(counts.fired(pair.source), own.sum(dim=0))
        for n, entry in zip((3, 5), counts.of_entries(pair, match, [3, 5]), strict=True):
            together, fired = int((own & partner)[:, n].sum()), int(own[:, n].sum())
            either = int((own | partner)[:, n].sum())
            assert entry["matching_score"] == pytest.approx(together / fired if fired else 0)
            assert entry["jaccard"] == pytest.approx(together / either if either else 0)
            assert (entry["n_fired_source"], entry["n_fired_target"]) == (
                fired,
                int(partner[:, n].sum()),
            )
            assert entry["jaccard_low"] <= entry["jaccard_high"]
    for key, row in zip(saes, tables.rows("layers"), strict=True):
        assert (row["suite"], row["layer"]) == key
        assert row["mean_l0"] == pytest.approx(active[key].sum().item() / len(states[key]))
        assert row["n_dead"] == int((~active[key].any(dim=0)).sum())
        norms = torch.linalg.vector_norm(states[key], dim=1)
        assert row["mean_norm"] == pytest.approx(norms.mean().item())


def test_the_table_of_matches_gets_the_scores_over_all_texts(subject):
    tables = tables_of(subject, CoActivation())
    scores = {(pair_of(row), row["arm"]): row for row in tables.rows("activations")
              if row["dataset"] == "all"}  # fmt: skip
    rows = tables.rows("matches")
    assert [(pair_of(row), row["arm"]) for row in rows] == list(scores)
    for row in rows:
        score = scores[pair_of(row), row["arm"]]
        assert {**row, "dataset": "all"} == {**score, "recall_live": None}


def test_batch_size_does_not_change_the_sums(matched, lm, subject, tmp_path):
    whole = tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(5)
    other = record_in(tmp_path, matched, lm, whole, batch_size=5)
    for name, value in sums(subject).items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-3)


def test_an_evaluation_continues_where_it_stopped(
    matched, lm, batches, subject, tmp_path, monkeypatch
):
    """Sums after a break are bit for bit those of an unbroken evaluation."""
    done = []
    real = SpliceRecorder.record

    def breaking(recorder, forward):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return real(recorder, forward)

    monkeypatch.setattr(SpliceRecorder, "record", breaking)
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        record_in(tmp_path, matched, lm, batches)
    monkeypatch.setattr(SpliceRecorder, "record", real)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(first) == 2, "of the first batch, one file of each evaluation"
    resumed = record_in(tmp_path, matched, lm, batches)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for name, value in sums(subject).items():
        assert torch.equal(resumed[name], value), name
    monkeypatch.setattr(SpliceRecorder, "record", breaking)  # a finished one is not begun again
    record_in(tmp_path, matched, lm, batches)


def test_sums_are_shared_by_what_determines_them(matched, lm, batches, tmp_path):
    subject = dataclasses.replace(matched, folder=tmp_path)
    fewer = Skipping(("drop",))
    files = []
    for evaluations, tokens in (
        ([SKIPPING], {"t": batches}),
        ([SKIPPING], {"another name": batches}),
        ([fewer], {"t": batches}),
        ([SKIPPING], {"t": batches[:1]}),
        ([CoActivation(), SKIPPING], {"t": batches}),
        ([CoActivation(), fewer], {"t": batches}),
    ):
        recorded(subject, evaluations, lm, tokens)
        files.append(len(list(tmp_path.glob("*.safetensors"))))
    assert files == [3, 3, 6, 6, 9, 9]


def test_a_damaged_file_of_sums_is_made_again(matched, lm, batches, tmp_path, caplog):
    whole = record_in(tmp_path, matched, lm, batches)
    for path in tmp_path.glob("*.safetensors"):
        caplog.clear()
        path.write_bytes(b"x" * 100)
        again = record_in(tmp_path, matched, lm, batches)
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        assert f"{path} is damaged" in caplog.text


def test_a_model_that_is_spread_over_devices_gives_the_same_sums(
    matched, batches, subject, tiny, tmp_path
):
    """Half of its blocks fetch their weights from disk, by a forward that must be left in pair."""
    pytest.importorskip("accelerate")
    whole = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    spread = dict.fromkeys([*whole, "model.layers.0", "model.layers.1"], "cpu")
    spread |= {"model.layers.2": "disk", "model.layers.3": "disk"}
    lm = LmSource(str(tiny / "lm"), "tiny", device_map=spread).load()
    assert lm.is_dispatched
    assert next(lm.blocks[3].parameters()).is_meta
    forwards = [block.forward for block in lm.blocks]
    assert "forward" in vars(lm.blocks[3])
    other = record_in(tmp_path, matched, lm, batches)
    for name, value in sums(subject).items():
        assert torch.equal(other[name], value), name
    assert [block.forward for block in lm.blocks] == forwards


@pytest.mark.parametrize("evaluation", BOTH, ids=("co_activation", "skipping"))
def test_halves_of_a_batch_are_joined_as_the_whole(matched, lm, batches, evaluation):
    check_halves(matched, lm, batches[0], evaluation)


def check_halves(subject, lm, batch, evaluation):
    """Check that joined recordings of two halves equal the recording of the whole batch."""
    recorder = evaluation.recorder(subject)

    def record(part):
        with torch.inference_mode():
            return recorder.record(forward_of(lm, part, subject.saes))

    parts = (batch.ids, batch.counts, batch.lengths)
    halves = (record(TokenBatch(*(part[n] for part in parts))) for n in ([0], [1]))
    joined = recorder.join(*halves, 1)
    whole = record(batch)
    assert joined.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(joined[name], value, rtol=1e-4, atol=1e-3)


def test_the_names_of_files_follow_the_features_that_go_over(matched):
    """Which features go over to the target depends on code that no splice names."""
    recorder = SKIPPING.recorder(matched)
    splice = next(s for s in recorder.splices if s.quantile == 0.4)
    job = recorder.splices[splice]
    fewer = job._replace(moved=job.moved.keep(torch.arange(len(job.moved.rows)) > 0))
    other = dataclasses.replace(recorder, splices={**recorder.splices, splice: fewer})
    assert list(other.splices) == list(recorder.splices)
    assert other.facts() != recorder.facts()

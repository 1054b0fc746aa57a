"""Sampling of events, and the recorders of ``verify`` in parts, halves and any order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluations import CPU, forward_of, split_texts, subject_of, tables_of
from interventions import FIRST, SPECIAL, fitting_sae, lively, texts_of
from matches import soft
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.ablation import AblationRecorder
from saematch.evaluate.events import (
    EventRecorder,
    Events,
    Sizes,
    Tokens,
    directions,
)
from saematch.evaluate.interventions import Interventions
from saematch.evaluate.verify import Verify
from saematch.lm.edits import EditRunner
from saematch.lm.source import LmSource
from saematch.matching.matches import MatchSet
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recording, pair_tensor_name
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.texts.priorities import hashes, text_keys
from saematch.texts.readers import Reader

PAIR = Pair.of_layers(0, 2)
KEY = PAIR.source
SIZES = Sizes(3, 40, 0)


@pytest.fixture(scope="module")
def lm():
    return lively("Llama")


@pytest.fixture(scope="module")
def saes(lm):
    kinds = zip(PAIR, ("jumprelu", "relu"), strict=True)
    return {key: fitting_sae(lm, key.layer, kind, 20, key.layer) for key, kind in kinds}


TEXTS = texts_of(9, 1, repeat=True)


def sample_of(lm, saes, folder, texts=TEXTS, batch_size=4, sizes=SIZES):
    recorder = EventRecorder(folder, (KEY,), sizes, Models())
    texts = TextPass({"": Reader(lm, {"t": texts.batches(batch_size)})}, Models(), CPU)
    recording = texts.record(SaeShelf.of(saes), {"events": recorder}, "events")["events"]
    return recorder.sample(KEY, recording)


def table_of(events):
    """Return the events as sorted rows, and their values in the same order."""
    names = ("features", "texts", "positions", "by_feature", "by_token")
    rows = torch.stack([getattr(events, name).long() for name in names], dim=1).tolist()
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return [rows[n] for n in order], events.values[order]


def reordered(texts, order):
    """Return texts in another order."""
    parts = [list(part.split(texts.lengths.tolist())) for part in (texts.ids, texts.counts)]
    ids, counts = (torch.cat([part[n] for n in order]) for part in parts)
    return replace(texts, ids=ids, counts=counts, lengths=texts.lengths[order])


@pytest.mark.parametrize(("batch_size", "order"), [(1, None), (10, None), (3, 5)])
def test_events_depend_neither_on_batches_nor_on_the_order(lm, saes, tmp_path, batch_size, order):
    expected = sample_of(lm, saes, tmp_path)
    texts = TEXTS
    if order:
        draw = torch.Generator().manual_seed(order)
        texts = reordered(TEXTS, torch.randperm(10, generator=draw).tolist())
    sample = sample_of(lm, saes, tmp_path, texts, batch_size)
    rows, values = table_of(sample.events)
    expected_rows, expected_values = table_of(expected.events)
    assert rows == expected_rows
    torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-5)
    assert torch.equal(sample.n_active, expected.n_active)
    torch.testing.assert_close(sample.total, expected.total, rtol=1e-5, atol=1e-5)
    assert sample.n_tokens == expected.n_tokens


def test_events_and_activity_by_hand(lm, saes, tmp_path):
    """At most three events a feature, from position 2, none at special tokens, equal texts once."""
    sample = sample_of(lm, saes, tmp_path)
    sae, active, total, n_tokens = saes[KEY], torch.zeros(20, dtype=torch.int64), 0.0, 0
    values = {}
    for ids in TEXTS.ids.split(TEXTS.lengths.tolist()):
        hidden, _ = lm.capture(ids[None], (KEY.layer,))
        f = sae.encode(hidden[KEY.layer][0])
        counted = [n for n in range(FIRST, len(ids)) if int(ids[n]) not in SPECIAL]
        active, total = active + (f[counted] > 0).sum(dim=0), total + f[counted].double().sum(dim=0)
        n_tokens += len(counted)
        for n in counted:
            for feature in torch.nonzero(f[n]).flatten().tolist():
                values[tuple(ids.tolist()), n, feature] = f[n, feature].item()
    assert torch.equal(sample.n_active, active)
    torch.testing.assert_close(sample.total, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sample.mean, total / active.clamp(min=1), rtol=1e-5, atol=1e-5)
    assert sample.n_tokens == n_tokens
    texts = {}
    for batch in TEXTS.batches(4):
        rows = zip(text_keys(batch).tolist(), batch.ids, batch.lengths.tolist(), strict=True)
        texts |= {key: tuple(ids[:length].tolist()) for key, ids, length in rows}
    assert len(texts) == 9
    rows, of_events = table_of(sample.events)
    seen = [(texts[key], position, feature) for feature, key, position, *_ in rows]
    assert len(set(seen)) == len(seen)
    for event, value in zip(seen, of_events.tolist(), strict=True):
        assert value == pytest.approx(values[event], rel=1e-5)
    different = np.bincount([feature for *_, feature in values], minlength=20)
    by_feature = torch.bincount(sample.events.features[sample.events.by_feature], minlength=20)
    assert by_feature.tolist() == np.minimum(different, 3).tolist()
    assert sample.events.by_token.sum() == 40


def test_the_sample_by_token_is_in_proportion_to_activations(lm, saes, tmp_path):
    share, counts = None, torch.zeros(20)
    for seed in range(12):
        sizes = Sizes(0, 60, seed)
        sample = sample_of(lm, saes, tmp_path, texts_of(40, 3), 40, sizes)
        share = sample.n_active / sample.n_active.sum()
        counts += torch.bincount(sample.events.features, minlength=20)
    expected = 720 * share
    chi_square = ((counts - expected).square() / expected.clamp(min=1)).sum()
    assert chi_square < 36, "19 degrees of freedom"
    assert share.max() > 5 * share.min(), "some features are active more often"


def test_events_of_halves_are_those_of_the_batch(lm, saes, tmp_path):
    recorder = EventRecorder(tmp_path, (KEY,), SIZES, Models())
    (batch,) = TEXTS.batches(10)
    halves = [record_part(recorder, lm, saes, batch, part) for part in (slice(4), slice(4, 10))]
    joined = recorder.join(*halves, 4)
    whole = recorder.record(forward_of(lm, batch, saes))
    samples = [recorder.sample(KEY, of_kept(kept)) for kept in (joined, whole)]
    assert table_of(samples[0].events)[0] == table_of(samples[1].events)[0]
    assert torch.equal(samples[0].n_active, samples[1].n_active)
    assert samples[0].n_tokens == samples[1].n_tokens


def record_part(recorder, lm, saes, batch, part):
    """Record some of the texts of a batch."""
    smaller = replace(
        batch, ids=batch.ids[part], counts=batch.counts[part], lengths=batch.lengths[part]
    )
    return recorder.record(forward_of(lm, smaller, saes))


def of_kept(kept):
    """Return a recording of one batch in memory."""

    class InMemory(Recording):
        def batches(self, names):
            yield [kept[name] for name in names]

    return InMemory({})


def test_effects_in_halves_are_those_of_the_batch(lm, saes, tmp_path):
    (batch,) = TEXTS.batches(10)
    events = {key: sampled(lm, saes, key, batch, tmp_path) for key in PAIR}
    features = torch.arange(20)
    injections = Tokens.of({"t": (batch,)}).at_random(features, 2, 0).writing(torch.ones(20))
    plan = Interventions(
        events[KEY], torch.full((20,), 0.3), injections, events[PAIR.target],
        {"m": soft(0, 20, 20)},
    )  # fmt: skip
    recorder = AblationRecorder(tmp_path, {PAIR: plan}, 0)
    halves = [record_part(recorder, lm, saes, batch, part) for part in (slice(4), slice(4, 10))]
    joined = recorder.join(*halves, 4)
    whole = recorder.record(forward_of(lm, batch, saes))
    assert joined.keys() == whole.keys()
    assert int(joined["n_texts"]) == int(whole["n_texts"]) == 10
    for edit in ("remove", "half", "to mean", "random direction", "inject", "joint m"):
        first, second = (rows_of(kept, edit) for kept in (joined, whole))
        assert first.keys() == second.keys()
        assert len(first) > 10
        for key, values in first.items():
            assert values == pytest.approx(second[key], rel=1e-4, abs=1e-4)


def sampled(lm, saes, key, batch, folder):
    recorder = EventRecorder(folder, (key,), SIZES, Models())
    return recorder.sample(key, of_kept(recorder.record(forward_of(lm, batch, saes)))).events


def rows_of(kept, edit):
    """Return the recorded numbers of each event by its text, position and feature."""
    columns = {
        name.rpartition("|")[2]: tensor for name, tensor in kept.items() if f"|{edit}|" in name
    }
    keys = list(zip(*(columns[n].tolist() for n in ("key", "position", "feature")), strict=True))
    rows = {key: [] for key in keys}
    if "n_entries" in columns:
        events = torch.repeat_interleave(columns["n_entries"]).tolist()
        for name in ("target", "before", "after", "change"):
            for event, value in zip(events, columns[name].tolist(), strict=True):
                rows[keys[event]].append(value)
    for name in ("joint", "single", "before", "silent", "total", "value", "by_feature"):
        if name in columns and len(columns[name]) == len(keys):
            for key, value in zip(keys, columns[name].tolist(), strict=True):
                rows[key].append(float(value))
    return {key: values[: len(values)] for key, values in rows.items()}


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_a_low_precision_of_the_model_is_not_that_of_the_saes(
    lm, saes, tmp_path, monkeypatch, kind
):
    """Without any change of the target's hidden states, no activation changes."""
    (batch,) = TEXTS.batches(10)
    saes = {**saes, PAIR.target: fitting_sae(lm, 2, kind, 20, 2)}
    events = {key: sampled(lm, saes, key, batch, tmp_path) for key in PAIR}
    injections = Tokens.of({"t": (batch,)}).at_random(torch.arange(20), 2, 0)
    plan = Interventions(
        events[KEY], torch.full((20,), 0.3), injections.writing(torch.ones(20)),
        events[PAIR.target], {"m": soft(0, 20, 20)},
    )  # fmt: skip
    forward = forward_of(lm, batch, saes)
    clean = forward.hidden[PAIR.target.layer]
    monkeypatch.setattr(
        EditRunner, "run", lambda _, _s, _t, edits: clean[edits.texts, edits.positions]
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = AblationRecorder(tmp_path, {PAIR: plan}, 0).record(forward)
    for edit in ("remove", "half", "to mean", "random direction", "inject"):
        before, after, change = (
            kept[pair_tensor_name(PAIR, f"{edit}|{name}")] for name in ("before", "after", "change")
        )
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-5)
    before, *after = (
        kept[pair_tensor_name(PAIR, f"joint m|{name}")] for name in ("before", "joint", "single")
    )
    for values in after:
        torch.testing.assert_close(values, before, rtol=1e-5, atol=1e-5)


def test_the_texts_of_effects_are_numbered_over_halves(lm, saes, tmp_path):
    (batch,) = TEXTS.batches(10)
    plan = Interventions(sampled(lm, saes, KEY, batch, tmp_path))
    recorder = AblationRecorder(tmp_path, {PAIR: plan}, 0)
    halves = [record_part(recorder, lm, saes, batch, part) for part in (slice(4), slice(4, 10))]
    joined = recorder.join(*halves, 4)
    texts, keys = (next(t for n, t in joined.items() if n.endswith(e)) for e in ("|text", "|key"))
    assert torch.equal(text_keys(batch)[texts], keys)
    assert texts.max() > 4


def results_with(lm, saes, folder, sets):
    """Return the rows of ``verify`` on text sets, by name."""
    matches = MatchSet((PAIR,), {"a": {PAIR: soft(0, 20, 20)}})
    subject = subject_of(saes, matches, folder=folder / "sums")
    subject = split_texts(subject, lm, sets, {"t": texts_of(6, 2).batches(6)})
    verify = Verify(partners=(1, 2), floor=1, n_events=2, n_learning=0)
    return tables_of(subject, verify).rows("verify")


def test_pairs_that_share_saes_may_have_different_matches(lm, saes, tmp_path):
    twin = Pair(*(SaeKey("twin", key.layer) for key in PAIR))
    shared = {**saes, **dict(zip(twin, saes.values(), strict=True))}
    of_arm = {PAIR: soft(0, 20, 20), twin: soft(1, 20, 20)}
    subject = subject_of(shared, MatchSet((PAIR, twin), {"a": of_arm}), folder=tmp_path / "sums")
    texts = {"t": texts_of(8, 5).batches(3)}
    subject = split_texts(subject, lm, texts, {"t": texts_of(6, 2).batches(3)})
    rows = tables_of(subject, Verify(partners=(1,), floor=1, n_learning=0)).rows("verify_joint")
    assert [row["target_suite"] for row in rows] == ["default", "twin"]


def test_results_depend_on_neither_batches_nor_repeated_texts_nor_sets(lm, saes, tmp_path):
    """Random controls included."""
    texts = texts_of(8, 5)
    expected = results_with(lm, saes, tmp_path / "expected", {"t": texts.batches(3)})
    mixed = reordered(texts, [5, *range(8), *range(7, -1, -1)]).batches(4)
    first, second = (reordered(texts, part).batches(3) for part in (range(5), range(3, 8)))
    for number, sets in enumerate(({"t": mixed}, {"a": first, "b": second})):
        rows = results_with(lm, saes, tmp_path / str(number), sets)
        for row, other in zip(rows, expected, strict=True):
            assert row["n_events"] == other["n_events"]
            for name in ("effect", "off_rate_active", "mass", "effect_random"):
                if row.get(name) is not None:
                    assert row[name] == pytest.approx(other[name], abs=1e-5), (name, row)


def test_small_memory_for_saes_changes_nothing(tiny, tmp_path):
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    source = SaeFolders(str(tiny / "saes/layer_{layer}"))
    keys = [SaeKey("default", layer) for layer in range(3)]
    pairs = (Pair.of_layers(0, 1), Pair.of_layers(1, 2))
    matches = MatchSet(pairs, {"a": {pair: soft(pair.source.layer) for pair in pairs}})
    texts = [texts_of(8, seed).batches(8) for seed in (1, 2)]
    results = []
    for number, memory in enumerate((1.0, 1e-9)):
        saes = SaeShelf.load(keys, {"default": source}, memory)
        assert len(saes.parts([frozenset(pair) for pair in pairs])) == number + 1
        subject = subject_of(saes, matches, folder=tmp_path / str(number) / "sums")
        subject = split_texts(subject, lm, {"t": texts[0]}, {"t": texts[1]})
        verify = Verify(partners=(1, 2), floor=1, n_events=1, n_learning=0)
        results.append(tables_of(subject, verify))
    for name in ("verify", "verify_injection", "verify_joint", "verify_counts"):
        assert results[0].rows(name) == results[1].rows(name)
    assert {row["source_layer"] for row in results[0].rows("verify")} == {0, 1}


def test_injections_are_at_tokens_that_count(lm):
    tokens = Tokens.of({"a": TEXTS.batches(4), "b": TEXTS.batches(10)})
    counted = sum(
        int(batch.counts[:, FIRST:].sum()) for batch in reordered(TEXTS, range(9)).batches(9)
    )
    assert len(tokens.texts) == counted, "equal texts once"
    events = tokens.at_random(torch.arange(20), 30, 0)
    assert torch.bincount(events.features).tolist() == [30] * 20
    assert events.positions.min() == FIRST
    places = set(zip(events.texts.tolist(), events.positions.tolist(), strict=True))
    assert len(places) > 0.9 * counted, "600 draws"


def test_directions_are_uniform_unit_vectors():
    n = torch.arange(4000)
    events = sampled_events(n)
    vectors = directions(0, events, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4000))
    assert vectors.mean(dim=0).abs().max() < 4 / (8 * 4000) ** 0.5
    moments = vectors.T @ vectors / 4000
    assert (moments - torch.eye(8) / 8).abs().max() < 0.015
    assert torch.equal(vectors[:5], directions(0, events.only(n[:5]), 8))
    assert not torch.allclose(vectors[:5], directions(1, events.only(n[:5]), 8))


def sampled_events(numbers):
    flags = torch.ones(len(numbers), dtype=torch.bool)
    return Events(numbers, numbers % 9 + 2, numbers % 7, numbers.float(), flags, flags)


def test_hashes_are_uniform():
    numbers = torch.arange(20_000)
    uniform = hashes(0, numbers, numbers % 3).double() / 2**62
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = torch.histc(uniform, 20, 0, 1)
    assert ((counts - 1000).square() / 1000).sum() < 45, "19 degrees of freedom"
    assert len(hashes(0, numbers).unique()) == 20_000
    assert (hashes(1, numbers) != hashes(0, numbers)).all()

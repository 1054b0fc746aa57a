"""Contexts from one streaming pass equal those of a plain look at every activation."""

import shutil
from dataclasses import replace

import pytest
import torch

from conftest import N_FEATURES, TEXTS
from saematch.core.pairs import SaeKey
from saematch.explain.contexts import (
    HALVES,
    ContextRecorder,
    Contexts,
    ContextStore,
    KeptContexts,
    find_peaks,
)
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recorder, tensor_name
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.texts import lightning_runner
from saematch.texts.readers import Reader
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise
from saematch.texts.trainer import TrainerSpec

KEYS = (SaeKey("default", 1), SaeKey("default", 2))


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def saes(tiny):
    source = SaeFolders(str(tiny / "saes/layer_{layer}"))
    return SaeShelf.of({key: source.load(key.layer) for key in KEYS})


def text_pass(lm, batch_size):
    sets = {"a": TextSet("a", tuple(TEXTS)), "b": TextSet("b", tuple(TEXTS[:3]))}
    tokens = {name: tokenise(texts, lm, 10).batches(batch_size) for name, texts in sets.items()}
    return TextPass({"": Reader(lm, tokens)}, Models(), TrainerSpec(accelerator="cpu"))


def collect(store, left):
    """Record and merge contexts, as a run does."""
    recorder = store.recorder(left)
    if recorder is None:
        return store.contexts(None)
    recordings = store.texts.record(store.saes, {"contexts": recorder}, "contexts")
    return store.contexts(recordings["contexts"])


def plain(lm, sae, texts, layer):
    """Every (feature, text) with its greatest activation, by running one text at a time."""
    peaks = {}
    for number, ids in enumerate(texts.readers[""].texts):
        hidden, _ = lm.capture(ids[None], (layer,))
        active = sae.encode(hidden[layer][0, 1:])
        values, positions = active.max(dim=0)
        for feature in torch.nonzero(values).flatten().tolist():
            peaks[feature, number] = int(positions[feature]) + 1, float(values[feature])
    return peaks


def listed(contexts):
    columns = (contexts.feature, contexts.text, contexts.position, contexts.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(("batch_size", "merged_at_once"), [(1, 20), (2, 10**6), (2, 0), (8, 0)])
def test_top_contexts_are_the_most_active_of_each_half(
    lm, saes, tmp_path, monkeypatch, batch_size, merged_at_once
):
    monkeypatch.setattr("saematch.explain.contexts.MERGED_AT_ONCE", merged_at_once)
    texts = text_pass(lm, batch_size)
    kept = collect(ContextStore(saes, texts, tmp_path / "kept", 2, 1), tmp_path / "left")
    for key in KEYS:
        peaks = plain(lm, saes[key], texts, key.layer)
        assert len({feature for feature, _ in peaks}) > 5
        by_group = {}
        for (feature, text), (position, value) in peaks.items():
            by_group.setdefault((feature, text % HALVES), []).append((value, text, position))
        expected = []
        for (feature, _), of_group in sorted(by_group.items()):
            for value, text, position in sorted(of_group, reverse=True)[:2]:
                expected.append((feature, text, position, value))
        top = listed(kept[key].top)
        assert [row[:3] for row in top] == [row[:3] for row in expected]
        for row, expected_row in zip(top, expected, strict=True):
            assert row[3] == pytest.approx(expected_row[3], rel=1e-4)
        sample = listed(kept[key].sample)
        assert {(f, t % HALVES) for f, t, _, _ in sample} == set(by_group)
        assert len(sample) == len(by_group), "one of each feature and half"


def test_the_sample_does_not_depend_on_the_batches_and_is_no_top(lm, saes, tmp_path):
    samples = []
    for size in (2, 3):
        store = ContextStore(saes, text_pass(lm, size), tmp_path / "kept", 1, 2)
        kept = collect(store, tmp_path / "left")
        samples.append([row[:3] for row in listed(kept[KEYS[0]].sample)])
    assert samples[0] == samples[1]
    chance = Contexts(*[torch.arange(20_000)] * 3, torch.ones(20_000)).chance()
    assert chance.min() >= 0
    assert chance.max() < 1
    counts = torch.histc(chance, 10, 0, 1)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_a_killed_pass_continues_and_kept_contexts_need_no_pass(lm, saes, tmp_path, monkeypatch):
    texts = text_pass(lm, 2)
    whole = collect(ContextStore(saes, texts, tmp_path / "whole", 2, 1), tmp_path / "left whole")
    store, left = ContextStore(saes, texts, tmp_path / "kept", 2, 1), tmp_path / "left"
    written = []
    write = lightning_runner.write_sums

    def breaking(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(1)
        write(*arguments)

    monkeypatch.setattr(lightning_runner, "write_sums", breaking)
    with pytest.raises(KeyboardInterrupt):
        collect(store, left)
    assert len(list(left.iterdir())) == 2
    assert not (tmp_path / "kept").exists()
    written = []
    monkeypatch.setattr(lightning_runner, "write_sums", lambda *a: (written.append(1), write(*a)))
    resumed = collect(store, left)
    assert len(written) == 1, "of five batches three differ, and two were recorded before"
    assert len(list((tmp_path / "kept").iterdir())) == len(KEYS)
    for key in KEYS:
        assert listed(resumed[key].top) == listed(whole[key].top)
    assert store.recorder(left) is None
    shutil.rmtree(left)
    again = store.contexts(None)
    assert listed(again[KEYS[1]].sample) == listed(whole[KEYS[1]].sample)


def test_a_merge_that_was_killed_needs_no_second_pass(lm, saes, tmp_path, monkeypatch):
    store = ContextStore(saes, text_pass(lm, 2), tmp_path / "kept", 2, 1)
    add, added = KeptContexts.add, []

    def killed(self, *arguments):
        added.append(arguments)
        if len(added) == 2:  # in the second SAE
            raise KeyboardInterrupt
        return add(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(KeptContexts, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(store, tmp_path / "left")
    files = set((tmp_path / "left").iterdir())
    collect(store, tmp_path / "left")
    assert set((tmp_path / "left").iterdir()) == files


def test_only_contexts_that_are_not_kept_are_recorded(lm, saes, tmp_path):
    texts = text_pass(lm, 8)
    first_store = ContextStore(saes.only(KEYS[:1]), texts, tmp_path / "kept", 2, 1)
    first = collect(first_store, tmp_path / "left")
    both = ContextStore(saes, texts, tmp_path / "kept", 2, 1)
    recorder = both.recorder(tmp_path / "left")
    assert isinstance(recorder, Recorder)
    assert recorder.saes == KEYS[1:]
    kept = collect(both, tmp_path / "left")
    assert listed(kept[KEYS[0]].top) == listed(first[KEYS[0]].top)
    for other in (
        ContextStore(saes, texts, tmp_path / "kept", 3, 1),
        ContextStore(saes, text_pass(lm, 3), tmp_path / "kept", 2, 1),
    ):
        assert other.recorder(tmp_path / "left").saes == KEYS


def test_twin_saes_are_recorded_once(lm, saes, tmp_path):
    twins = SaeShelf.of({**saes, SaeKey("other", 1): saes[KEYS[0]]})
    store = ContextStore(twins, text_pass(lm, 8), tmp_path / "kept", 2, 1)
    assert store.recorder(tmp_path / "left").saes == KEYS
    kept = collect(store, tmp_path / "left")
    assert kept[SaeKey("other", 1)] is kept[KEYS[0]]


def test_texts_have_the_numbers_of_the_own_model(lm, saes, tiny, tmp_path):
    """The second model cuts texts, so their order in the batches is another one."""
    other = LmSource(str(tiny / "lm"), "other").load()
    tokens = {
        name: tokenise(TextSet(name, tuple(texts)), other, 4).batches(3)
        for name, texts in {"a": TEXTS, "b": TEXTS[:3]}.items()
    }
    first = text_pass(lm, 2)
    texts = replace(
        first,
        readers={**first.readers, "b": Reader(other, tokens)},
        models=Models({"other": "b"}),
    )
    key = SaeKey("other", 1)
    both = SaeShelf.of({**saes, key: saes[KEYS[0]]})
    kept = collect(ContextStore(both, texts, tmp_path / "kept", 9, 1), tmp_path / "left")
    alone = TextPass({"": texts.readers["b"]}, Models(), first.trainer)
    peaks = plain(other, saes[KEYS[0]], alone, 1)
    rows = {(feature, text): position for feature, text, position, _ in listed(kept[key].top)}
    assert rows == {group: position for group, (position, _) in peaks.items()}
    peaks = plain(lm, saes[KEYS[0]], first, 1)
    rows = {(feature, text): at for feature, text, at, _ in listed(kept[KEYS[0]].top)}
    assert rows == {group: position for group, (position, _) in peaks.items()}


def test_contexts_are_written_and_read(tmp_path):
    contexts = [Contexts(*[torch.arange(n)] * 3, torch.rand(n)) for n in (3, 0)]
    kept = KeptContexts(*contexts)
    again = KeptContexts.of(kept.tensors())
    assert [listed(again.top), listed(again.sample)] == [*map(listed, contexts)]


def test_halves_of_a_batch_are_joined_as_the_whole(tmp_path):
    """Numbers of texts in the second half follow those of the first half."""
    features = torch.tensor([0, 1, 1, 0])
    values = torch.tensor([0.5, 2.0, 2.5, 0.1])
    text, position = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 1, 1])
    key = SaeKey("default", 1)

    def peaks(start, end):
        starts = torch.arange(end - start)
        active = SparseFeatures(starts, features[start:end], values[start:end], 2)
        return vars(find_peaks(active, text[start:end] - text[start], position[start:end]))

    first, second = (
        {tensor_name(key, name): tensor for name, tensor in peaks(*ends).items()}
        for ends in ((0, 3), (3, 4))
    )
    joined = ContextRecorder(tmp_path, (key,)).join(first, second, 2)
    for name, tensor in peaks(0, 4).items():
        assert torch.equal(joined[tensor_name(key, name)], tensor), name


def test_peaks_by_hand():
    """Two texts of two tokens; feature 1 is equally active on both tokens of the first."""
    active = SparseFeatures(
        starts=torch.tensor([0, 2, 3, 3]),
        features=torch.tensor([0, 1, 1, 0]),
        values=torch.tensor([0.5, 2.0, 2.0, 0.1]),
        n_features=3,
    )
    text, position = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 1, 2])
    peaks = find_peaks(active, text, position)
    assert listed(peaks) == [
        (0, 0, 1, 0.5),
        (1, 0, 1, 2.0),
        (0, 1, 2, pytest.approx(0.1)),
    ]
    assert N_FEATURES > 3

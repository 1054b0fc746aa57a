"""Contexts from one streaming pass equal those of a plain look at every activation."""

import pytest
import torch

from conftest import N_FEATURES, TEXTS
from saematch.core.pairs import SaeKey
from saematch.explain.contexts import HALVES, Contexts, TextPass, collect_contexts, find_peaks
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures
from saematch.sae.sources.disk import SaeFolders
from saematch.texts import lightning_runner
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
    return {key: source.load(key.layer) for key in KEYS}


def text_pass(lm, batch_size, folder):
    sets = {"a": TextSet("a", tuple(TEXTS)), "b": TextSet("b", tuple(TEXTS[:3]))}
    trainer = TrainerSpec(accelerator="cpu")
    tokens = {name: tokenise(texts, lm, 10).batches(batch_size) for name, texts in sets.items()}
    return TextPass(lm, tokens, trainer, folder / "left")


def plain(lm, saes, texts, key):
    """Every (feature, text) with its greatest activation, by running one text at a time."""
    found = {}
    for number, ids in enumerate(texts.texts):
        hidden, _ = lm.capture(ids[None], (key.layer,))
        active = saes[key].encode(hidden[key.layer][0, 1:])
        values, positions = active.max(dim=0)
        for feature in torch.nonzero(values).flatten().tolist():
            found[feature, number] = int(positions[feature]) + 1, float(values[feature])
    return found


def listed(contexts):
    columns = (contexts.feature, contexts.text, contexts.position, contexts.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_top_contexts_are_the_most_active_of_each_half(lm, saes, tmp_path, batch_size):
    texts = text_pass(lm, batch_size, tmp_path)
    kept = collect_contexts(saes, texts, 2, 1, tmp_path)
    for key in KEYS:
        every = plain(lm, saes, texts, key)
        assert len({feature for feature, _ in every}) > 5
        by_group = {}
        for (feature, text), (position, value) in every.items():
            by_group.setdefault((feature, text % HALVES), []).append((value, text, position))
        expected = []
        for (feature, _), of_group in sorted(by_group.items()):
            for value, text, position in sorted(of_group, reverse=True)[:2]:
                expected.append((feature, text, position, value))
        got = listed(kept[key].top)
        assert [row[:3] for row in got] == [row[:3] for row in expected]
        for mine, theirs in zip(got, expected, strict=True):
            assert mine[3] == pytest.approx(theirs[3], rel=1e-4)
        sample = listed(kept[key].sample)
        assert {(f, t % HALVES) for f, t, _, _ in sample} == set(by_group)
        assert len(sample) == len(by_group), "one of each feature and half"


def test_the_sample_does_not_depend_on_the_batches_and_is_no_top(lm, saes, tmp_path):
    samples = []
    for size in (2, 3):
        texts = text_pass(lm, size, tmp_path)
        kept = collect_contexts(saes, texts, 1, 2, tmp_path / str(size))
        samples.append([row[:3] for row in listed(kept[KEYS[0]].sample)])
    assert samples[0] == samples[1]
    chance = Contexts(*[torch.arange(20_000)] * 3, torch.ones(20_000)).chance()
    assert chance.min() >= 0
    assert chance.max() < 1
    counts = torch.histc(chance, 10, 0, 1)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_a_pass_that_was_killed_goes_on_and_one_that_was_made_is_read(
    lm, saes, tmp_path, monkeypatch
):
    texts = text_pass(lm, 2, tmp_path)
    whole = collect_contexts(saes, texts, 2, 1, tmp_path / "whole")
    done = []
    real = lightning_runner.write_sums

    def breaking(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        real(*arguments)

    monkeypatch.setattr(lightning_runner, "write_sums", breaking)
    with pytest.raises(KeyboardInterrupt):
        collect_contexts(saes, texts, 2, 1, tmp_path / "broken")
    assert len(list((tmp_path / "left").iterdir())) == 2
    assert not (tmp_path / "broken").exists()
    written = []
    monkeypatch.setattr(lightning_runner, "write_sums", lambda *a: (written.append(1), real(*a)))
    resumed = collect_contexts(saes, texts, 2, 1, tmp_path / "broken")
    assert len(written) == 1, "of five batches three differ, and two were done"
    assert len(list((tmp_path / "broken").iterdir())) == 1
    assert not (tmp_path / "left").exists()
    for key in KEYS:
        assert listed(resumed[key].top) == listed(whole[key].top)
    monkeypatch.setattr("saematch.explain.contexts.run_batches", None)
    again = collect_contexts(saes, texts, 2, 1, tmp_path / "broken")
    assert listed(again[KEYS[1]].sample) == listed(whole[KEYS[1]].sample)
    assert len(written) == 1


def test_twin_saes_are_looked_at_once(lm, saes, tmp_path):
    twins = {**saes, SaeKey("other", 1): saes[KEYS[0]]}
    kept = collect_contexts(twins, text_pass(lm, 8, tmp_path), 2, 1, tmp_path)
    assert kept[SaeKey("other", 1)] is kept[KEYS[0]]


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

"""Tokens are kept, and by all that determines them."""

import logging
from dataclasses import replace

import pytest
import torch

from conftest import TEXTS
from saematch.lm.source import LmSource
from saematch.texts.sources import LocalTexts, ZooTexts
from saematch.texts.token_cache import load_texts, resolve_texts
from saematch.texts.tokens import tokenise


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture
def spec(tiny):
    return LocalTexts([str(tiny / "texts.jsonl")], n_texts=4, max_tokens=10)


@pytest.fixture
def drawn(monkeypatch):
    """Return a list with one item for each time that texts were drawn."""
    calls, load = [], LocalTexts.load
    monkeypatch.setattr(LocalTexts, "load", lambda self: calls.append(self) or load(self))
    return calls


def test_the_same_texts_are_read_once(lm, spec, drawn, tmp_path):
    first, again = (load_texts(resolve_texts(spec, tmp_path), lm) for _ in range(2))
    assert len(drawn) == 1
    assert first.described == again.described
    (texts,) = spec.load()
    for loaded in (first, again):
        expected = tokenise(texts, lm, 10)
        torch.testing.assert_close(loaded.tokens["texts"].ids, expected.ids)
        torch.testing.assert_close(loaded.tokens["texts"].lengths, expected.lengths)
        torch.testing.assert_close(loaded.tokens["texts"].counts, expected.counts)


@pytest.mark.parametrize(
    "change",
    [{"n_texts": 3}, {"max_tokens": 9}, {"seed": 1}, {"min_characters": 20}, {"column": "body"}],
)
def test_other_texts_are_read_again(lm, spec, drawn, tmp_path, change):
    load_texts(resolve_texts(spec, tmp_path), lm)
    if "column" in change:
        with pytest.raises(ValueError, match="no field 'body'"):
            load_texts(resolve_texts(replace(spec, **change), tmp_path), lm)
    else:
        load_texts(resolve_texts(replace(spec, **change), tmp_path), lm)
    assert len(drawn) == 2


def test_another_model_bos_file_or_code_is_another_key(lm, drawn, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(TEXTS))
    spec = LocalTexts([str(path)], n_texts=4, max_tokens=10)
    load_texts(resolve_texts(spec, tmp_path), lm)
    changes = {"revision": "sha256:0", "bos_id": None, "special_ids": frozenset({0})}
    for name, value in changes.items():
        with monkeypatch.context() as changed:
            changed.setattr(lm, name, value)
            tokens = load_texts(resolve_texts(spec, tmp_path), lm).tokens["a"]
            assert (tokens.ids[0] == lm.bos_id) == (lm.bos_id is not None)
    assert len(drawn) == 4
    path.write_text("\n\n".join(reversed(TEXTS)))
    load_texts(resolve_texts(spec, tmp_path), lm)
    assert len(drawn) == 5
    monkeypatch.setattr("saematch.texts.token_cache.code_of", lambda *_: "other")
    load_texts(resolve_texts(spec, tmp_path), lm)
    assert len(drawn) == 6


def test_a_damaged_file_is_made_again(lm, spec, drawn, tmp_path, caplog):
    load_texts(resolve_texts(spec, tmp_path), lm)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        load_texts(resolve_texts(spec, tmp_path), lm)
    assert "is damaged" in caplog.text
    load_texts(resolve_texts(spec, tmp_path), lm)
    assert len(drawn) == 2


def test_sets_keep_their_order_and_say_what_they_are(tmp_path):
    lm = LmSource("zoo", "zoo").load()
    spec = ZooTexts(("prose", "code"), n_texts=2, max_tokens=8, seed=3)
    for _ in range(2):
        loaded = load_texts(resolve_texts(spec, tmp_path), lm)
        assert list(loaded.tokens) == list(loaded.described) == ["prose", "code"]
    assert loaded.described["code"].pop("sha256").startswith("sha256:")
    assert loaded.described["code"] == {
        "path": "zoo/code",
        "n_texts": 2,
        "seed": 3,
        "n_special": 0,
    }
    path = tmp_path / "a.txt"
    path.write_text("one two three")
    twice = LocalTexts([str(path), f"{tmp_path}/a*.txt"], n_texts=1, max_tokens=8)
    with pytest.raises(ValueError, match=r"two text sets have the same name \(a\)"):
        load_texts(resolve_texts(twice, tmp_path), lm)

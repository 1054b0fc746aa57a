"""Texts in the user's own files."""

import json

import pandas
import pytest

from saematch.texts.hub import HubSet, HubTexts
from saematch.texts.sources import LocalTexts


def load(*paths, n_texts=2, **settings):
    spec = LocalTexts([str(path) for path in paths], n_texts, 8, **settings)
    return {text_set.name: sorted(text_set.texts) for text_set in spec.load()}


def write_jsonl(path, *texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({column: text}) for text in texts))


def test_every_format_holds_the_same_texts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", "one", "two")
    (tmp_path / "b.json").write_text(json.dumps([{"text": "one"}, {"text": "two", "id": 3}]))
    pandas.DataFrame({"id": [3, 4], "text": ["one", "two"]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    texts = load(*(tmp_path / name for name in ("a.jsonl", "b.json", "c.parquet", "d.txt")))
    assert texts == {name: ["one", "two"] for name in "abcd"}


def test_a_folder_and_a_pattern_are_one_set_each(tmp_path):
    write_jsonl(tmp_path / "web/a.jsonl", "one")
    (tmp_path / "web/b.txt").write_text("two")
    (tmp_path / "web/notes.md").write_text("no text")
    write_jsonl(tmp_path / "code-1.jsonl", "three")
    write_jsonl(tmp_path / "code-2.jsonl", "four")
    texts = load(tmp_path / "web", tmp_path / "code-*.jsonl")
    assert texts == {"web": ["one", "two"], "code": ["four", "three"]}
    assert set(load(tmp_path / "web/?.*")) == {"web"}
    write_jsonl(tmp_path / "a[1].jsonl", "one", "two")
    assert set(load(tmp_path / "a[1].jsonl")) == {"a[1]"}, "a file goes before a pattern"


def test_another_column_and_short_texts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", "one", "", "three", column="body")
    assert load(tmp_path / "a.jsonl", column="body") == {"a": ["one", "three"]}
    assert load(tmp_path / "a.jsonl", column="body", min_characters=4, n_texts=1) == {
        "a": ["three"]
    }


def test_null_in_a_column_is_a_text_of_no_characters_as_on_the_hub(tmp_path):
    rows = pandas.DataFrame({"text": ["one", None, "three"]})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_feather(tmp_path / "b.arrow", compression="uncompressed")
    hub = HubTexts({"a": HubSet(str(tmp_path / "hub"))}, 9, 8, min_characters=1)
    (tmp_path / "hub").mkdir()
    rows.to_parquet(tmp_path / "hub/train.parquet")
    for name in ("a.parquet", "b.arrow"):
        assert load(tmp_path / name).popitem()[1] == ["one", "three"]
    assert sorted(hub.load()[0].texts) == ["one", "three"]


def test_what_cannot_be_read(tmp_path):
    pandas.DataFrame({"id": [3], "body": ["one"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "c.parquet").write_text("no Parquet")
    (tmp_path / "d.json").write_text('["one"]')
    (tmp_path / "e").mkdir()
    for name, message in {
        "a.parquet": r"no field 'text', only id, body: set dataset\.column",
        "c.parquet": r"cannot read the texts in .*c\.parquet",
        "d.json": r"d\.json, entry 1: not a JSON object with a field 'text'",
        "e": r"holds no file ending in \.txt, \.jsonl",
        "f*": "no file matches",
        "nowhere": "there is no such file or folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"dataset\.paths='a\.jsonl' must be a list"):
        LocalTexts("a.jsonl", 1, 8)

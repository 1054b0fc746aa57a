"""Texts in users' files: read completely, or refused with file and line."""

import gzip
import json
import shutil
import zipfile

import datasets
import pandas
import pytest

from conftest import TEXTS, random_sae, tiny_overrides
from saematch.chat.answers import json_object
from saematch.core.files import parse_json
from saematch.core.pairs import SaeKey
from saematch.core.results import Results
from saematch.explain.jsonl import JsonlExplanations
from saematch.lm.source import LmSource
from saematch.runs.resuming import refuse_other_run
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.folders import find_files
from saematch.texts.hub import HubSet, HubTexts
from saematch.texts.sources import LocalTexts
from saematch.training.collect import Collection

SAME = ("one\n2", 'two, "2"', "drei ß")
DEEP = "[" * 100_000


def load(*paths, **settings):
    spec = LocalTexts([str(path) for path in paths], None, 8, **settings)
    return {texts.name: texts.texts for texts in spec.load()}


def check_labels(path):
    JsonlExplanations(str(path)).check({SaeKey("default", 1): random_sae(1, layer=1)})


def refused(path, content=None, **settings):
    """Return the message that refuses a file of this content."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as raised:
        load(path, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def frame():
    return pandas.DataFrame({"id": [1, 2, 3], "text": SAME})


def write_all(folder, bom=""):
    """Write the same texts as files of all kinds that can begin with a byte-order mark."""
    rows = frame().to_dict("records")
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    contents = {
        "a.jsonl": lines,
        "b.ndjson": lines,
        "c.json": lines,
        "d.json": json.dumps(rows, indent=1),
        "e.csv": frame().to_csv(index=False),
        "f.tsv": frame().to_csv(index=False, sep="\t"),
        "g.txt": "\n\n".join(SAME),
        "h": "\r\n\r\n".join(SAME).replace("one\n", "one\r\n"),
        "i.JSONL": lines,
    }
    for name, content in contents.items():
        (folder / name).write_bytes((bom + content).encode())
    return [folder / name for name in contents]


def test_B6_a_lone_surrogate_is_refused_with_its_line_before_a_model_runs(
    cli, tiny, tmp_path, monkeypatch
):
    (tmp_path / "t.jsonl").write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}')
    monkeypatch.setattr("saematch.sae.passes.TextPass.record", None)
    base = [s for s in tiny_overrides(tiny) if not s.startswith("dataset.paths")]
    message, _ = cli("dataset.paths=[t.jsonl]", "logger=none", base=base)
    assert "t.jsonl, line 2: character 5 of the text is half of a surrogate pair" in message
    assert r"(\ud83d)" in message
    listed = refused(tmp_path / "t.json", r'[{"text": "a"}, {"text": "\udfff"}]')
    assert "t.json, entry 2: character 0" in listed
    (tmp_path / "labels.jsonl").write_text('{"feature": 0, "layer": 1, "text": "\\ud83d"}')
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: character 0 of the text is half"):
        check_labels(tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": {"en": "one"}}', "line 2: the field 'text' is a JSON object, not a text"),
        ('{"text": ["one"]}', "line 2: the field 'text' is a list, not a text"),
        ('{"text": null}', "line 2: the field 'text' is null, not a text"),
        ('{"text": 5}', "line 2: the field 'text' is 5, not a text"),
        ('{"body": "one"}', "line 2: no field 'text', only body: set dataset.column"),
        (DEEP, "line 2: the line is not JSON (it is nested too deeply"),
        (
            '{"text": "a", "n": ' + "1" * 5000 + "}",
            "line 2: the line is not JSON (Exceeds",
        ),
        ('"one"', "line 2: not a JSON object with a field 'text'"),
    ],
)
def test_B15_values_that_are_not_texts_are_refused_with_their_line(tmp_path, row, words):
    for name in ("t.jsonl", "t.json"):
        message = refused(tmp_path / name, '{"text": "one"}\n' + row)
        assert f"{name}, {words}" in message
        assert len(message) < 250


def test_B15_deeply_nested_json_is_refused_elsewhere(tmp_path):
    for content in (DEEP, DEEP.encode(), '{"a":' * 100_000, b"\xff", "1" * 5000):
        with pytest.raises(json.JSONDecodeError):
            parse_json(content)
    assert "nested too deeply" in refused(tmp_path / "t.json", DEEP)
    (tmp_path / "labels.jsonl").write_text(DEEP)
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1 is not a JSON object: it is"):
        check_labels(tmp_path / "labels.jsonl")
    assert json_object('{"a":' + DEEP + "}") is None, "what an LLM answers"


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_B19_every_kind_of_file_holds_the_same_texts(tmp_path, bom):
    frame().to_parquet(tmp_path / "p.parquet")
    frame().to_feather(tmp_path / "q.arrow")
    paths = [*write_all(tmp_path, bom), tmp_path / "p.parquet", tmp_path / "q.arrow"]
    for path in paths:
        assert load(path) == {path.stem: SAME}, path.name


def test_B19_what_to_json_and_to_csv_write_is_read(tmp_path):
    dataset = datasets.Dataset.from_pandas(frame())
    dataset.to_json(tmp_path / "lines.json")
    dataset.to_json(tmp_path / "list.json", lines=False)
    dataset.to_csv(tmp_path / "cells.csv")
    (tmp_path / "single.json").write_text('{\n "text": "one"\n}')
    assert load(*sorted(tmp_path.iterdir())) == {
        "cells": SAME,
        "lines": SAME,
        "list": SAME,
        "single": ("one",),
    }
    assert "c.json is not JSON (" in refused(tmp_path / "c.json", '[{"text": "one"}, {')


def test_B19_what_save_to_disk_writes_is_read(tmp_path, caplog):
    dataset = datasets.Dataset.from_pandas(frame())
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    frame().to_feather(tmp_path / "one/cache-0123.arrow")  # as the library leaves them
    assert load(tmp_path / "one") == {"one": SAME}
    dataset.select([2, 0]).save_to_disk(tmp_path / "some")
    assert load(tmp_path / "some") == {"some": (SAME[2], SAME[0])}
    assert not caplog.records
    splits = {"train": dataset.select([0]), "test": dataset.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "two") == {"two": SAME[:1]}
    assert "two: taking the split train; dataset.paths can name the others: test" in caplog.text
    assert load(tmp_path / "two/test") == {"test": SAME[1:2]}
    (tmp_path / "one/state.json").write_text("[]")
    assert "state.json is not a valid file of the datasets library" in refused(tmp_path / "one")


def test_B19_a_snapshot_of_the_hub_is_read(tmp_path, caplog):
    top = tmp_path / "datasets--some--web/snapshots" / ("a" * 40)
    (top / "data").mkdir(parents=True)
    (top / "README.md").write_text("a card")
    (top / "dataset_infos.json").write_text("{}")
    for n in range(2):
        frame()[n : n + 1].to_parquet(top / f"data/train-0000{n}-of-00002.parquet")
    assert load(top) == {"web": SAME[:2]}
    assert not caplog.records
    frame()[2:].to_parquet(top / "data/test-00000-of-00001.parquet")
    assert load(top) == {"web": SAME[:2]}
    assert "taking the split train; dataset.paths can name the others: test" in caplog.text
    assert load(top / "data/test-*.parquet") == {"test": SAME[2:]}
    (top / "LICENSE.txt").write_text("you may")
    assert "has text files (LICENSE.txt), and its subfolder data has some too: set" in refused(top)


def test_B19_a_choice_between_folders_or_splits_is_the_users(tmp_path):
    for name in ("big", "small"):
        (tmp_path / "set" / name).mkdir(parents=True)
        frame().to_parquet(tmp_path / f"set/{name}/train-0.parquet")
    message = refused(tmp_path / "set")
    assert "holds several sets of texts (big, small): choose, as in" in message
    assert f"dataset.paths=['{tmp_path}/set/big']" in message
    (tmp_path / "splits").mkdir()
    for name in ("validation", "test"):
        frame().to_parquet(tmp_path / f"splits/{name}.parquet")
    assert f"(test, validation): choose, as in dataset.paths=['{tmp_path}/splits/test*']" in (
        refused(tmp_path / "splits")
    )


def test_B19_a_home_in_any_path(cli, tiny, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for path in tiny.iterdir():
        (home / path.name).symlink_to(path)
    monkeypatch.setenv("HOME", str(home))
    assert LocalTexts(["~/a", "b/~/c"], 1, 8).paths == [f"{home}/a", "b/~/c"]
    assert LmSource("~/lm", "tiny").path == f"{home}/lm"
    assert SaeFolders("~/s/{layer}").path == f"{home}/s/{{layer}}"
    assert HubSet("~/set").path == f"{home}/set"
    assert Collection(9, 9, folder="~/states").folder == f"{home}/states"
    assert JsonlExplanations("~/e.jsonl").path == f"{home}/e.jsonl"
    settings = ["dataset=local", "dataset.paths=[~/texts.jsonl]", "model=local", "model.path=~/lm"]
    settings += ["sae=disk", 'sae.path="~/saes/layer_{layer}"', 'cache="~/kept"', "model.name=tiny"]
    settings += ["evaluations=[co_activation]", "logger=none", "figures=[]", "layers=[1,2]"]
    assert cli(*settings, "trainer.accelerator=cpu", "run_id=a", base=[])[0] is None
    assert list((home / "kept/tokens").glob("*.safetensors"))
    assert not (tmp_path / "~").exists()


def test_B21_cells_are_read_as_they_are(tmp_path):
    long = "x" * 200_000
    content = f'id,text\r\n1,"a ""b"", c\nd"\r\n2,NA\r\n3,\r\n\r\n4,\u2028{long}\r\n'
    (tmp_path / "t.csv").write_text(content, newline="")
    assert load(tmp_path / "t.csv") == {"t": ('a "b", c\nd', "NA", f"\u2028{long}")}
    assert load(tmp_path / "t.csv", column="id") == {"t": ("1", "2", "3", "4")}


def test_B21_a_table_without_the_column_is_refused(tmp_path):
    words = "no field 'text', only id, body: set dataset.column"
    assert words in refused(tmp_path / "t.csv", "id,body\n1,one\n")
    assert words in refused(tmp_path / "t.tsv", "id\tbody\n1\tone\n")
    assert load(tmp_path / "t.tsv", column="body") == {"t": ("one",)}
    assert "only id;text: set" in refused(tmp_path / "t.csv", "id;text\n1;one\n")
    assert "t.csv, line 4: 1 cells, but 2 columns" in refused(
        tmp_path / "t.csv", 'id,text\n1,"a\nb"\n2\n'
    )
    assert "t.csv, line 3: unexpected end" in refused(tmp_path / "t.csv", 'id,text\n1,a\n2,"b')


def test_B21_files_that_are_not_texts_are_refused(tmp_path):
    lines = "\n".join(json.dumps({"text": text}) for text in SAME)
    with zipfile.ZipFile(tmp_path / "t.docx", "w") as file:
        file.writestr("word/document.xml", "<w/>")
    assert "is not UTF-8 text: unpack a compressed file" in refused(tmp_path / "t.docx")
    for name, content in {
        "t.jsonl.gz": gzip.compress(lines.encode()),
        "t.pdf": "%PDF-1.4 text",
        "t.rtf": "{\\rtf1 text}",
        "t.bin": "a\0b",
        "utf16.txt": "text".encode("utf-16"),
    }.items():
        assert f"{name} is not UTF-8 text" in refused(tmp_path / name, content)
    for name in ("t.txt", "t", "t.ipynb"):
        for content in (lines, f"\n[{lines.splitlines()[0]}]", '{\n "cells": []\n}'):
            message = refused(tmp_path / name, content)
            assert f"{name} contains JSON, not plain text: rename it to .jsonl or .json" in message
    assert load_text(tmp_path / "code.py", "[1]\n\n{x}\n\nend") == ("[1]", "{x}", "end")
    assert "cannot read the texts in" in refused(tmp_path / "t.arrow", b"ARROW1 no more")
    assert "cannot read the texts in" in refused(tmp_path / "t.arrow", b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jsonl").write_text(lines)
    (tmp_path / "folder/b.jsonl.zst").write_bytes(b"")
    assert "b.jsonl.zst is compressed: unpack it" in refused(tmp_path / "folder")


def load_text(path, content):
    path.write_text(content)
    return load(path)[path.stem]


def test_B19_a_set_with_too_few_texts_is_used_whole_with_a_warning(cli, tiny, tmp_path):
    settings = ["dataset.n_texts=50", "evaluations=[co_activation]", "logger=none", "layers=[1,2]"]
    numbers = []
    for run in ("a", "b"):  # the second one reads the tokens of the first
        message, printed = cli(*settings, f"run_id={run}")
        assert message is None
        words = "dataset.n_texts=50, but the text set 'texts' has only 5: the run uses all of them"
        assert words in printed.err
        results = json.loads((tmp_path / f"outputs/match/{run}/results.json").read_text())
        assert results["provenance"]["texts"]["texts"]["n_texts"] == len(TEXTS)
        assert {row["n_texts"] for row in results["tables"]["layers"]} == {len(TEXTS)}
        numbers.append(results["tables"])
    assert numbers[0] == numbers[1]
    (tmp_path / "empty.jsonl").write_text("\n")
    message, _ = cli("dataset.paths=[empty.jsonl]", "logger=none", "run_id=c")
    assert "the text set 'empty' is empty" in message


def test_B19_fewer_texts_on_the_hub_than_asked_for_are_all_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    frame().to_parquet(tmp_path / "train.parquet")
    sets = {"web": HubSet(str(tmp_path))}
    (texts,) = HubTexts(sets, n_texts=9, max_tokens=8, min_characters=1).load()
    assert sorted(texts.texts) == sorted(SAME)
    (tmp_path / "train.parquet").unlink()
    pandas.DataFrame({"text": [{"en": "one"}]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="the field 'text' is a JSON object, not a text"):
        HubTexts(sets, n_texts=9, max_tokens=8, min_characters=1).load()


def test_B15_deeply_nested_json_in_files_of_runs_and_saes_is_refused(tiny, tmp_path):
    for name in ("results.json", "run.json"):
        (tmp_path / name).write_text(DEEP)
    shutil.copytree(tiny / "saes/layer_0", tmp_path / "sae_0")
    (tmp_path / "sae_0/cfg.json").write_text(DEEP)
    for read in (
        lambda: Results.load(tmp_path / "results.json"),
        lambda: refuse_other_run(tmp_path, {}),
        lambda: SaeFolders(str(tmp_path / "sae_{layer}")).load(0),
    ):
        with pytest.raises(ValueError, match=r"\.json .*(nested too deeply|maximum recursion)"):
            read()


def test_B19_a_folder_of_splits_and_another_file_is_refused(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a text of this split"}\n')
    assert [path.name for path in find_files(str(tmp_path))[1]] == ["train.jsonl"]
    (tmp_path / "README.txt").write_text("What these files are.")
    with pytest.raises(ValueError, match=r"files of several splits, and README\.txt"):
        find_files(str(tmp_path))

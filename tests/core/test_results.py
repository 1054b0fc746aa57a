"""Every reader refuses results of another schema and names the version that reads them."""

import json
import os
from pathlib import Path

import pytest

from saematch.compare.runs import find_runs
from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.results import Results, SchemaError, results_path
from saematch.core.tables import Tables
from saematch.runs.resuming import finished_as, refuse_other_run


def old_run(folder, schema):
    """Write a finished run whose results have another schema; None removes the schema."""
    folder.mkdir(parents=True, exist_ok=True)
    Results("x", {}, {}, "finished").save(folder / "results.json")
    (folder / "run.json").write_text("{}")
    path = folder / "results.json"
    content = json.loads(path.read_text())
    assert content.pop("schema") == 2
    path.write_text(json.dumps(content if schema is None else {"schema": schema, **content}))
    return path


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (None, "has schema 1 and this saematch reads schema 2: saematch 0.1 reads it"),
        (1, "has schema 1 and this saematch reads schema 2: saematch 0.1 reads it"),
        (3, "has schema 3 and this saematch reads schema 2: a later saematch may read it"),
        ("two", "has schema 'two' and this saematch reads schema 2"),
        ([2], "has schema [2] and this saematch reads schema 2"),
    ],
)
def test_another_schema_is_refused(tmp_path, schema, words):
    path = old_run(tmp_path / "a", schema)
    readers = (
        lambda: Results.load(path),
        lambda: finished_as(path.parent, {}),
        lambda: refuse_other_run(path.parent, {"seed": 1}),
    )
    for read in readers:
        with pytest.raises(SchemaError) as caught:
            read()
        assert str(caught.value).startswith(f"{path} {words}")
        assert str(caught.value).endswith("or run again with another run_id or folder")
    (run,) = find_runs([tmp_path]).runs
    assert (run.state, run.reason) == ("outdated", str(caught.value))


def test_results_are_read_as_they_were_saved(tmp_path):
    column = Column("m", "metric m", "lower", "nats", 0.0, interval=True, logged=("t",))
    tables = Tables.of({"t": [{"arm": "a", "m": 0.5}, {"arm": "b", "m": None}], "u": []}, [column])
    results = Results("x", {"seed": 1}, {"code": "a"}, "finished", None, {"m": 0.5}, tables)
    results.save(tmp_path / "results.json")
    loaded = Results.load(tmp_path / "results.json")
    assert list(loaded.tables) == ["t", "u"]
    assert loaded.tables["t"].equals(tables["t"])
    assert loaded.tables.columns == {"m": column}
    rest = [name for name in vars(results) if name not in ("tables", "folder")]
    assert [getattr(loaded, name) for name in rest] == [getattr(results, name) for name in rest]


def test_the_command_line_refuses_to_go_on_with_a_run_of_another_version(cli, tmp_path):
    settings = ["logger=none", "evaluations=[]", "arms=[identity]", "run_id=a"]
    assert cli(*settings)[0] is None
    path = tmp_path / "outputs/match/a/results.json"
    content = json.loads(path.read_text())
    del content["schema"]
    path.write_text(json.dumps(content))
    message, _ = cli(*settings)
    assert message.startswith("saematch: outputs/match/a/results.json has schema 1")
    assert json.loads(path.read_text()) == content, "the file did not change"
    message, _ = cli("compare", str(tmp_path / "outputs/match"), base=[])
    assert "no run can be compared: 1 outdated; " in message
    assert "has schema 1" in message


def test_frame_names_the_existing_tables(tmp_path):
    results = Results("run", {}, {}, tables=Tables.of({"matches": [{"arm": "folded"}]}))
    results.save(f"{tmp_path}/results.json")
    results = Results.load(f"{tmp_path}/results.json")
    assert results.frame("matches")["arm"].tolist() == ["folded"]
    assert repr(results) == "Results(run, running; tables: matches)"
    with pytest.raises(InputError, match="no table 'mse': choose among matches"):
        results.frame("mse")


def test_html_has_the_summary_and_the_tables():
    results = Results("<run>", {}, {}, tables=Tables.of({"matches": [{"arm": "folded"}]}))
    html = results._repr_html_()
    assert html.startswith("<p>Results(&lt;run&gt;, running; tables: matches)</p><table")
    assert "<td>matches</td>" in html


def test_a_run_is_read_by_its_folder(tmp_path):
    Results("run", {}, {}).save(tmp_path / "results.json")
    assert Results.load(tmp_path) == Results.load(tmp_path / "results.json")
    assert Results.load(str(tmp_path)).folder == tmp_path
    assert "folder" not in json.loads((tmp_path / "results.json").read_text())
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        Results.load(tmp_path / "nowhere")


def test_a_folder_without_results_names_the_newest_run_near_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, run in enumerate(("outputs/match/new", "outputs/mse/old")):
        Results("match", {}, {}).save(tmp_path / run / "results.json")
        os.utime(tmp_path / run / "results.json", (1000 - age, 1000 - age))
    for folder in ("outputs/match", "outputs", "outputs/match/typo", "typo"):
        with pytest.raises(InputError, match="the newest one here, outputs/match/new"):
            results_path(Path(folder))
    with pytest.raises(InputError, match=r"a/typo does not exist: .*, such as outputs/match/<run_"):
        results_path(Path("a/typo"))
    assert results_path(Path("outputs/mse/old")) == Path("outputs/mse/old/results.json")

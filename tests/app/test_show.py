"""The commands ``saematch show``, ``saematch features`` and ``saematch export``."""

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from hand_run import write_hand_run
from matches import permutation
from saematch.core.pairs import Pair
from synthetic_run import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", 2, 16, 4)


@pytest.fixture
def call(cli, run):
    """Call a command on the run; return its message and output."""

    def called(name, *words):
        message, output = cli(name, str(run), *words, base=[])
        assert message is None or "\n" not in message
        return message, output.out

    return called


def test_show_writes_a_page_and_its_last_line_is_the_address(call, run, tmp_path):
    message, output = call("show")
    assert message is None
    address = output.splitlines()[-1].removeprefix("open in a browser: ")
    page = Path(unquote(urlsplit(address).path))
    assert page == (run / "explorer/index.html").resolve() and page.is_file()
    message, output = call("show", "--to", "a new/page")
    assert message is None and "/a%20new/page/index.html" in output
    assert call("show", "--to", "a new/page")[0] is None  # an earlier page is replaced
    assert list((tmp_path / "a new/page").glob("data-*/run.js"))
    (tmp_path / "empty").mkdir()
    assert call("show", "--to", "empty")[0] is None


def test_show_opens_a_browser_if_asked(call, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    call("show")
    assert opened == []
    call("show", "--open")
    assert opened[0].startswith("file:///") and opened[0].endswith("/explorer/index.html")


def test_show_replaces_nothing_but_a_page(call, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for place, message in {
        "mine": "mine has other files, which a page would replace: choose another --to",
        "file": "file is a file: choose a folder",
        "file/page": "cannot be written (Not a directory)",
        ".": "has other files",
        "..": "has other files",
        str(run): "run has other files",
        "x" * 300: "is not a valid path",
        "/proc/page": "cannot be written",
    }.items():
        refused = call("show", "--to", place)[0]
        assert message in refused, place
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert (tmp_path / "file").read_text() == "keep"
    assert (run / "results.json").exists()


def test_commands_refuse_a_folder_without_a_run(cli, tmp_path):
    words = {"show": [], "features": ["0", "1"], "export": ["csv"], "metrics": []}
    for name, more in words.items():
        message, _ = cli(name, "nowhere", *more, base=[])
        assert message.startswith("saematch: nowhere does not exist: name the folder"), name
    assert not (tmp_path / "nowhere").exists()


def test_features_prints_each_feature(call):
    message, output = call("features", "0", "3", "5", "--arm", "folded")
    assert message is None
    assert "feature 3 of layer 0" in output and "feature 5 of layer 0" in output
    assert "path under folded" in output and "cosine" not in output


@pytest.mark.parametrize(
    "words, message",
    [
        (["9", "1"], "has no SAE of layer 9: choose among layer 0, layer 1"),
        (["0", "16"], "feature 16: the SAE of layer 0 has the features 0 to 15"),
        (["0", "1", "--suite", "wide"], "has no suite wide: choose one of default"),
        (["0", "1", "--arm", "x"], "has no arm x: choose among folded, cosine"),
    ],
)
def test_features_names_what_exists(call, words, message):
    assert message in call("features", *words)[0]


def test_features_of_a_run_with_several_suites_need_a_suite(cli, tmp_path):
    pairs = [Pair.of_layers(0, 1, suite) for suite in ("a", "b")]
    write_hand_run(tmp_path / "two", {("m", pair): permutation(0, 3) for pair in pairs})
    message, _ = cli("features", "two", "0", "1", base=[])
    assert message == "saematch: two has several suites: choose one of a, b with --suite"
    assert cli("features", "two", "0", "1", "--suite", "b", base=[])[0] is None


def test_exports_are_written_and_counted(call, run):
    message, output = call("export", "csv", "--arm", "cosine", "--pair", "0-1", "--top", "2")
    assert message is None
    lines = output.splitlines()
    assert lines[-1] == f"written: {run / 'exports/links.csv'}"
    table = pd.read_csv(run / "exports/links.csv")
    assert lines[0].startswith(f"{len(table)} links; left out: ") and len(table) == 32
    assert call("export", "parquet", "--to", "links.parquet")[0] is None
    assert set(pd.read_parquet("links.parquet")["arm"]) == {"folded", "cosine"}
    message, output = call("export", "graph", "--feature", "0/3", "--feature", "1/2")
    assert message is None and output.startswith("2 paths under folded: 4 nodes\n")
    graph = json.loads((run / "exports/graph.json").read_text())
    assert len(graph["qParams"]["supernodes"]) == 2
    message, output = call(
        "export", "group", str(run / "exports/graph.json"), "--scan", "unknown", "--arm", "folded"
    )
    assert message is None
    assert output.startswith("0 supernodes with 0 nodes under folded; not grouped: 4 of 4 features")


@pytest.mark.parametrize(
    "words, message",
    [
        (["csv", "--arm", "x"], "has no arm x"),
        (["csv", "--pair", "3-4"], "no match of the pair 3-4: choose among 0-1"),
        (["csv", "--to", "."], "is a folder: name a file with --to"),
        (["csv", "--to", "/proc/x/links.csv"], "cannot be written"),
        (["csv", "--to", "x" * 300], "is not a valid path"),
        (["graph", "--feature", "3"], "is not a feature: write LAYER/FEATURE"),
        (["graph", "--feature", "0/99"], "feature 99: the SAE of layer 0 has"),
        (["neuronpedia", "--feature", "0/3"], "have no neuronpedia_id"),
        (["group", "absent.json"], "absent.json"),
        (["group", "run/results.json"], "is no attribution graph"),
        (["group", "run"], "it is a folder"),
    ],
)
def test_exports_refuse_what_the_run_does_not_have(call, run, words, message):
    assert message in call("export", *words)[0]
    assert not (run / "exports").exists()


def test_a_group_does_not_replace_its_graph(call, run):
    call("export", "graph", "--feature", "0/3")
    path = run / "exports/graph.json"
    before = path.read_bytes()
    assert "is the graph itself" in call("export", "group", str(path), "--to", str(path))[0]
    assert path.read_bytes() == before

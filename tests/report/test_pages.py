"""Pages: text from runs is escaped, and a page is a single file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saematch.app.compare import compare
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report import reproduction
from saematch.report.reproduction import Run, write_page

SCRIPT = "<script>alert('x')</script>\"onload=alert(1)"
MEANS_ROW = {
    "suites": "default", "arm": SCRIPT, "strategy": None, "quantile": None, "dataset": None,
    "metric": "recall", "value": 0.5, "low": None, "high": None, "n_pairs": 1,
}  # fmt: skip


class Tags(HTMLParser):
    """Names and attributes of a page's tags."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture
def comparison_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate((SCRIPT, "plain")):
        run = Path("runs") / f"{number}{SCRIPT.replace('/', '')}"
        config = {"overrides": [f"sae={value}"], "sae": {"path": value}, "choices": {}}
        results = Results("match", config, {"code": "c", "git_commit": SCRIPT, "versions": {}})
        results.status = "finished" if number else "failed"
        results.error = SCRIPT
        results.tables = Tables.of({"means": [MEANS_ROW]})
        results.save(run / "results.json")
        (run / "run.json").write_text(json.dumps({"sae.path": value}))
    return compare([Path("runs")]).out / "index.html"


@pytest.fixture
def reproduction_page(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "ZOO_NOTE", f"`{SCRIPT}` {SCRIPT}")
    folder = tmp_path / SCRIPT.replace("/", "")
    results = Results("mse", {}, {"git_commit": SCRIPT, "seconds": 1.0})
    results.status, results.tables = "finished", Tables.of({SCRIPT: []})
    results.save(folder / "results.json")
    runs = [
        Run("mse", SCRIPT, SCRIPT, folder),
        Run(SCRIPT, "chain", SCRIPT, folder),
        Run("mse", "chain", SCRIPT, folder, SCRIPT),
    ]
    write_page(runs, "zoo", tmp_path / "page.md")
    return tmp_path / "page.html"


@pytest.mark.parametrize("page", ["comparison_page", "reproduction_page"])
def test_text_from_runs_is_escaped(page, request):
    path = request.getfixturevalue(page)
    tags = Tags(path)
    assert "script" not in tags.names
    assert "onload" not in tags.attributes
    assert "&lt;script&gt;" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["comparison_page", "reproduction_page"])
def test_a_page_is_one_file_for_light_and_dark_screens_of_any_width(page, request):
    path = request.getfixturevalue(page)
    text = path.read_text(encoding="utf-8")
    assert "link" not in Tags(path).names
    assert "prefers-color-scheme: dark" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert len(re.findall("<table", text)) == len(re.findall('<div class="wide"><table', text)) > 0

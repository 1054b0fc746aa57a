"""Text from outside is data: it cannot control a terminal, spreadsheet, page or figure."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas
import pytest

from saematch.chat.asking import AskingError
from saematch.chat.model import ChatModel, Limits
from saematch.core.results import Results
from saematch.core.safe_text import for_spreadsheets, in_markdown, visible
from saematch.core.tables import Tables
from saematch.judge.connect import connect
from saematch.report.reproduction import Run, write_page

EVIL = "\x1b]0;owned\x07\x1b[31mred $x_{$"
SHOWN = r"\x1b]0;owned\x07\x1b[31mred $x_{$"
MEANS_ROW = {
    "suites": "default", "arm": "folded", "dataset": "all", "strategy": None, "quantile": None,
    "metric": "matching_score", "value": 0.5, "low": 0.4, "high": 0.6, "n_pairs": 3,
}  # fmt: skip


def foreign_runs(folder: Path) -> None:
    """Write two runs with a hostile setting, as if from another machine."""
    for number, value in enumerate((EVIL, "=cmd|' /C calc'!A0")):
        run = folder / f"{number}{EVIL.replace('/', '')}"
        config = {"overrides": [f"sae={value}"], "sae": {"path": value}, "choices": {}}
        results = Results("match", config, {"code": "c", "git_commit": None, "versions": {}})
        results.status = "finished"
        results.tables = Tables.of({"means": [{**MEANS_ROW, "arm": f"@{value}"}]})
        results.save(run / "results.json")
        (run / "run.json").write_text(json.dumps({"sae.path": value}))


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """Compare hostile runs; return the terminal's output and the folder."""
    from saematch.app.compare import compare
    from saematch.compare.terminal import print_comparison

    monkeypatch.chdir(tmp_path)
    foreign_runs(tmp_path / "runs")
    print_comparison(compare([Path("runs")]), [])
    return capsys.readouterr().out, tmp_path / "runs" / "comparison"


def test_C6_escape_codes_of_runs_are_written_out(compared):
    out, folder = compared
    assert "\x1b" not in out
    assert "\x07" not in out
    assert r"\x1b]0;owned" in out
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert list(folder.glob("figures/*.png"))


def test_C7_cells_of_text_are_no_formulas(compared):
    _, folder = compared
    text = pandas.read_csv(folder / "runs.csv").select_dtypes(["object", "string"])
    for name in ("comparison.csv", "runs.csv"):
        frame = pandas.read_csv(folder / name)
        cells = [cell for _, column in frame.items() for cell in column if isinstance(cell, str)]
        assert cells
        assert not [cell for cell in cells if cell[0] in "=+-@"]
    assert len(text)


def test_C7_numbers_and_other_text_stay():
    frame = pandas.DataFrame({"a": ["=1+1", "b"], "n": [-1.5, 2.0]})
    assert for_spreadsheets(frame).to_dict("list") == {"a": ["'=1+1", "b"], "n": [-1.5, 2.0]}


def test_C8_an_error_text_becomes_no_image_and_no_link(tmp_path):
    error = "![x](https://example.org/pixel.png) <img src=//example.org> | `code`\n# head"
    run = Run("mse", "chain", "saematch +experiment=mse", tmp_path / "none", error)
    write_page([run], "zoo", tmp_path / "page.md")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert 'href="https://example.org' not in page
    assert "![x](https://example.org/pixel.png)" in page


def test_visible_leaves_plain_text_and_writes_out_the_rest():
    assert visible("über 3→4 ✓") == "über 3→4 ✓"
    assert visible(EVIL) == SHOWN
    assert visible(["a\nb", {"k\u202e": ("\ud800",)}]) == [r"a\nb", {r"k\u202e": (r"\ud800",)}]
    assert in_markdown("a*b\n![c](d)") == r"a\*b \!\[c\]\(d\)"


@pytest.mark.parametrize(
    "setting",
    [
        "judge.base_url=http://user:pass/word@host/v1",
        "judge.base_url='http://user:pw@host/v1'",
        "judge.base_url=http://host/v1?access_token=abc",
        "judge.base_url=http://host/v1#abc",
        "explain.api=https://user:p/w@host",
        "+logger.access_token=abc",
        "judge.key_variable=AbCdEf0123456789",
        "judge.key_variable=0123456789abcdef0123456789abcdef",
        "judge.key_variable=sk-proj-0123456789abcdef",
        "judge.key_variable='hf_AbCdEf'",
    ],
)
def test_C2_C3_a_secret_on_the_command_line_is_refused_before_anything_is_written(
    setting, cli, tmp_path
):
    message, output = cli(setting)
    assert "the command line accepts no key or password" in message
    assert not list(tmp_path.iterdir())
    for secret in ("pass/word", "AbCdEf", "abc", "0123456789abcdef"):
        assert secret not in message + output.out + output.err


@pytest.mark.parametrize(
    "setting",
    [
        "judge.key_variable=OPENAI_API_KEY",
        "judge.key_variable=null",
        "dataset.n_texts=5",
        "dataset.paths=[data/token=8/x.parquet]",
    ],
)
def test_C3_names_of_variables_are_taken(setting):
    from saematch.app.secrets import refuse_secrets

    refuse_secrets([setting])


@pytest.mark.parametrize(
    ("settings", "secret"),
    [
        ({"base_url": "http://u:pa/ss@host/v1"}, "pa/ss"),
        ({"base_url": "http://host/v1?access_token=abc"}, "abc"),
        ({"base_url": "http://host/v1", "key_variable": "AbC123secret"}, "AbC123secret"),
    ],
)
def test_C2_C3_a_spec_refuses_a_secret_without_repeating_it(settings, secret):
    with pytest.raises(ValueError) as caught:
        ChatModel(model="m", **settings)
    assert secret not in str(caught.value)


class _Redirecting(BaseHTTPRequestHandler):
    target = ""

    def _answer(self) -> None:
        self.send_response(307)
        self.send_header("Location", f"{self.target}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


class _Listening(BaseHTTPRequestHandler):
    seen: list[str]

    def _answer(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


def test_C10_a_redirect_to_another_server_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-secret-key")
    _Listening.seen = []
    servers = [HTTPServer(("127.0.0.1", 0), kind) for kind in (_Redirecting, _Listening)]
    first, second = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    _Redirecting.target = second
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        spec = ChatModel(
            model="m", base_url=f"{first}/v1", key_variable="JUDGE_KEY",
            price_input=1.0, limits=Limits(retries=0),
        )  # fmt: skip
        with pytest.raises(AskingError, match="redirect") as caught:
            connect(spec, tmp_path / "judge.sqlite")
        assert second in str(caught.value)
        assert _Listening.seen == []
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        assert socket.getdefaulttimeout() is None

"""A reproduction's page, from runs of the tiny model."""

import re

import pytest

from conftest import tiny_overrides
from saematch.app import reproduce
from saematch.app.main import main
from saematch.report.captions import CAPTIONS

ONLY = ["--only", "mse,parts"]


@pytest.fixture
def command(tiny, tmp_path, monkeypatch, capsys):
    """Run ``saematch reproduce`` on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    base = tiny_overrides(tiny)
    small = ["logger=none", "intervals.n_replicates=10", "setting.pair=[1,2]"]
    monkeypatch.setattr(reproduce, "FAMILIES", {"zoo": {"tiny": base, "other": base}})
    monkeypatch.setattr(reproduce, "ONCE", {"zoo": {}})

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["saematch", "reproduce", *arguments, *small])
        try:
            main()
        except SystemExit as exit:
            return str(exit.code)
        return None

    return run


def test_finished_runs_are_kept_and_shown_on_a_whole_page(command, tmp_path):
    assert command("--only", "mse", "--families", "tiny", "--page", "docs/page.md") is None
    assert (tmp_path / "docs/page_figures/mse-tiny-mse.png").exists()
    result = tmp_path / "outputs/mse/reproduction-tiny/results.json"
    before = result.stat().st_mtime_ns
    assert command("--only", "parts", "--families", "tiny") is None
    assert result.stat().st_mtime_ns == before
    page = (tmp_path / "outputs/reproduction/index.md").read_text()
    assert "2 of 2 runs finished" in page
    assert "## mse" in page
    assert "## parts" in page

    assert command(*ONLY) is None
    assert result.stat().st_mtime_ns == before
    page = (tmp_path / "outputs/reproduction/index.md").read_text()
    assert page.startswith("# Reproduction on zoo\n")
    assert "4 of 4 runs finished" in page
    assert "| [mse](#mse) | figure 3 | unfolded is above folded in W_dec |" in page
    assert "![mse, tiny: mse](index_figures/mse-tiny-mse.png)" in page
    figures = {path.name for path in (tmp_path / "outputs/reproduction/index_figures").iterdir()}
    assert figures == {f"{name}-{family}-{figure}.png" for family in ("tiny", "other")
                       for name, figure in (("mse", "mse"), ("parts", "matching"))}  # fmt: skip
    assert re.search(r"- \[mse\]\(#mse\): \d of 3 statements of the paper agree on tiny", page)
    assert re.search(r'So "(\d+) of (\d+) agree" means that \1 of the\s\2 verdicts', page)
    assert f"mse-tiny-mse.png)\n\n{CAPTIONS['mse']}\n" in page
    html = (tmp_path / "outputs/reproduction/index.html").read_text()
    assert '<h2 id="mse">mse</h2>' in html
    assert '<img src="index_figures/mse-tiny-mse.png"' in html
    assert "Rows of the tables in <code>outputs/mse/reproduction-tiny/results.json</code>" in html
    assert (tmp_path / "outputs/mse/reproduction-tiny/saematch.log").read_text().count(
        "solved"
    ) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_fails_does_not_stop_the_others(command, tmp_path, monkeypatch):
    broken = {name: [*own] for name, own in reproduce.FAMILIES["zoo"].items()}
    broken["tiny"].append("layers=[0,9]")
    monkeypatch.setattr(reproduce, "FAMILIES", {"zoo": broken})
    message = command("--only", "mse")
    assert message.startswith("failed: mse on tiny: layers=[0, 9]: there is no SAE for layer 9")
    page = (tmp_path / "outputs/reproduction/index.md").read_text()
    assert "1 of 2 runs finished" in page
    assert r"- mse on tiny: layers=\[0, 9\]" in page


def test_a_bug_in_one_run_does_not_stop_the_others(command, tmp_path, monkeypatch, caplog):
    from saematch.runs import stages

    load = stages.load

    def fails(context):
        if context.experiment.name == "mse":
            raise RuntimeError("a bug")
        load(context)

    monkeypatch.setattr(stages, "load", fails)
    message = command(*ONLY, "--families", "tiny")
    assert message == "failed: mse on tiny: RuntimeError: a bug"
    assert (tmp_path / "outputs/reproduction/index.html").exists()
    assert "1 of 2 runs finished" in (tmp_path / "outputs/reproduction/index.md").read_text()
    traces = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in traces] == ["a bug"]

"""The command ``saematch metrics`` and the page made by it."""

import re
from pathlib import Path

from saematch.core.columns import Column
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report.metrics import markdown, own_columns

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")


def test_every_metric_is_defined():
    for column in own_columns().values():
        assert column.meaning, column.name
        assert column.better in ("higher", "lower", None)
        assert column.least < column.greatest


def test_the_page_shows_definitions_as_they_are():
    """A metric that is new is missing until ``make metrics-page``; what is shown is right."""
    rows = markdown(own_columns().values()).splitlines()
    shown = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert shown
    assert [line for line in shown if line not in rows] == []


def test_the_command_prints_names_and_writes_the_page(cli, tmp_path):
    message, output = cli("metrics", base=[])
    assert message is None
    assert all(
        re.search(rf"^{column.name}\b", output.out, re.M) for column in own_columns().values()
    )
    assert cli("metrics", "--page", "metrics.md", base=[])[0] is None
    assert "| `delta_loss` | change in loss: " in Path("metrics.md").read_text(encoding="utf-8")


def test_a_run_has_the_metrics_of_other_packages_too(cli, tmp_path):
    tables = Tables({}, [Column("mine", "my metric", "lower", "nats", meaning="what I count")])
    Results("match", {}, {}, tables=tables).save(tmp_path / "run/results.json")
    message, output = cli("metrics", "run", base=[])
    assert message is None
    assert "my metric" in output.out
    assert "delta_loss" not in output.out
    message, _ = cli("metrics", "nowhere", base=[])
    assert "nowhere" in message


def test_text_of_other_packages_does_not_break_the_table():
    row = markdown([Column("m", "a | b", unit="x|y", meaning="one\ntwo")]).splitlines()[-1]
    assert row == r"| `m` | a \| b: one two | x\|y | – | any | no |"

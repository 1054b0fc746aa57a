"""Help, version, list of experiments and completion."""

from __future__ import annotations

import re

import pytest

from saematch import __version__
from saematch.app.commands import COMMANDS
from saematch.app.help import groups, help_text, settings
from saematch.app.text import two_columns
from saematch.core.files import PRESETS


def test_help_names_commands_choices_and_settings_with_their_purpose(cli):
    _, captured = cli("--help", base=[])
    text = captured.out
    assert text.index("Commands") < text.index("Choices") < text.index("Settings")
    for name in COMMANDS:
        assert re.search(rf"^  {name}\b", text, re.M)
    lines = (PRESETS / "config.yaml").read_text().splitlines()
    described = {group for group, _, _ in groups(lines)}
    assert described == set(re.findall(r"^  - ([\w@]+): ", "\n".join(lines), re.M))
    assert "sae_memory=4.0" in text
    assert "intervals.level=0.95" in text
    assert "verify_features" in text
    config = cli("--cfg", "job", base=[])[1].out
    chosen = re.search(r"^  evaluations=\[(.*)\]$", text, re.M)[1].split(",")
    assert chosen and all(
        f"\n  {name}:\n    _target_: saematch.evaluate" in config for name in chosen
    )
    assert "={}" not in text  # it is refused


def test_settings_have_a_purpose():
    lines = (PRESETS / "config.yaml").read_text().splitlines()
    unexplained = [name for name, text in settings(lines) if not text and not name.startswith(" ")]
    assert unexplained == []


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    wide = [line for line in help_text().splitlines() if len(line) > 80]
    assert all(line.startswith("  saematch ") for line in wide)  # one long example


def test_two_columns_by_hand():
    assert two_columns([("a", "one"), ("bb", "two")]) == "  a   one\n  bb  two\n"
    assert two_columns([("x" * 30, "one"), ("y", "")]) == (
        f"  {'x' * 30}\n{' ' * 30}one\n  y\n"
    )  # fmt: skip


def test_version(cli):
    assert cli("--version", base=[])[1].out == f"saematch {__version__}\n"


def test_experiments_are_listed_with_one_line_or_two(cli):
    lines = cli("experiments", base=[])[1].out.splitlines()
    names = {path.stem for path in (PRESETS / "experiment").glob("*.yaml")}
    assert {line.split()[0] for line in lines if line[2] != " "} == names
    assert len(lines) <= len(names) + 4
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("line", "expected", "unexpected"),
    [
        ("saematch s", {"show", "sweep", "seed="}, {"model="}),
        ("saematch model=sm", {"model=smollm2_135m"}, {"show"}),
        ("saematch spread -n 2 model=sm", {"model=smollm2_135m"}, set()),
        ("saematch show out", set(), {"show"}),
    ],
)
def test_completion_knows_commands(cli, monkeypatch, line, expected, unexpected):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    words = set(cli("-sc", "query=bash", base=[])[1].out.split())
    assert expected <= words
    assert not unexpected & words

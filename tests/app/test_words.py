"""Words of the command line: options come first; words that mean nothing are refused."""

from __future__ import annotations

import sys

import pytest

from saematch.app.main import continuation
from saematch.app.words import options_first
from saematch.core.errors import InputError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=1", "--cfg", "job", "b=2"], ["--cfg", "job", "a=1", "b=2"]),
        (["seed=0,1", "-m"], ["-m", "seed=0,1"]),
        (["-sc", "install=bash"], ["-sc", "install=bash"]),
        (["~judge", "+experiment=mse"], ["~judge", "+experiment=mse"]),
        ([], []),
    ],
)
def test_options_come_first(words, expected):
    assert options_first(words) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run"], "a run has no command"),
        (["help"], "there is no command help; did you mean --help?"),
        (["feature", "outputs/a", "3", "42"], "did you mean features?"),
        (["skip-layers"], "write +experiment=skip_layers"),
        (["skip_layer"], "did you mean +experiment=skip_layers?"),
        (["layers", "[2,3]"], "layers has no value: write layers=VALUE"),
        (["layers=", "[2,3]"], "[2,3] is not a setting: write KEY=VALUE, without blanks"),
        (["+experiment"], "write +experiment=NAME"),
        (["seed=1", "features"], "the command comes first: saematch features"),
        (["--layers", "2"], "a setting has no hyphens: write layers=VALUE"),
        (["--layers=[2]"], "a setting has no hyphens: write layers=[2]"),
        (["--experiment", "mse"], "write +experiment=NAME"),
        (["--experimental", "x"], "there is no option --experimental"),
        (["--multirn", "seed=0,1"], "did you mean --multirun?"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
    ],
)
def test_other_words_are_refused_with_what_to_write(words, sentence):
    with pytest.raises(InputError) as caught:
        options_first(words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_them_too(cli):
    assert "did you mean features?" in cli("feature", "a", base=[])[0]
    assert "write +experiment=NAME" in cli("--experiment", "mse", base=[])[0]


@pytest.mark.parametrize(
    ("started", "script", "expected"),
    [
        ([".venv/bin/python", "-m"], "/x/saematch/__main__.py", ".venv/bin/python -m saematch"),
        (["/bin/python3"], "/x/bin/saematch", "/x/bin/saematch"),
    ],
)
def test_a_continuation_starts_the_program_that_was_started(monkeypatch, started, script, expected):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", [script])
    assert continuation(["seed=1", "run_id=a"]) == f"{expected} seed=1 run_id=a"

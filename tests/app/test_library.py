"""``saematch.run`` in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import saematch
from conftest import tiny_overrides
from saematch.core.errors import InputError


def test_a_run_returns_its_results(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = saematch.run([*tiny_overrides(tiny), "evaluations=[]", "run_id=a"])
    assert results.status == "finished"
    assert results.folder == Path(f"outputs/{results.name}/a")
    frame = results.frame("matches")
    stored = saematch.Results.load(f"outputs/{results.name}/a/results.json").frame("matches")
    assert frame["value"].tolist() == stored["value"].tolist()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("layers=[2,3]", "give a list"),
        (["layer=[2,3]"], "there is no setting 'layer'; did you mean layers?"),
        (["model=none"], "there is no model=none: choose one of"),
        ({"layers": [2, 3]}, "give a list of texts, such as"),
        ([("layers", 3)], "give a list of texts, such as"),
        (["--help"], "'--help' is not a setting: write NAME=VALUE"),
        (["features", "outputs/match/a"], "'features' is not a setting: write NAME=VALUE"),
        (["seed=-1"], "seed=-1 must be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_one_error(tmp_path, monkeypatch, settings, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")) as raised:
        saematch.run(settings)
    assert len(raised.traceback) < 4, "a notebook shows the whole traceback"
    assert not (tmp_path / "outputs").exists()

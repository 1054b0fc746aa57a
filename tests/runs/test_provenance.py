"""A changed plug-in is solved anew and noticed by a comparison; code that shows numbers is not."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from saematch.compare.checks import compared, keep_comparable
from saematch.compare.runs import RunFolder
from saematch.core.code import codes_of
from saematch.core.files import hashed
from saematch.core.results import Results
from saematch.report import summary
from saematch.runs import stages
from saematch.runs.provenance import SHOWING, made_with

MATCHER = """
from plugged.rule import partners
from saematch.core.match import Match
from saematch.core.specs import spec

@spec("matcher")
class Mine:
    one_partner = True

    def __call__(self, factors):
        return Match.from_columns(partners(len(factors.X_A)), len(factors.X_B))
"""
RULE = "import torch\n\ndef partners(n):\n    return torch.arange(n)"
SETTINGS = ["logger=none", "evaluations=[]", "layers=[0,1,2]", "arms=[folded]",
            "arms.folded.matcher={_target_:plugged.mine.Mine}"]  # fmt: skip


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """Write a file of a package of somebody else; it is imported anew, as by a new process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def rewrite(name, text):
        path = tmp_path / "plugged" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        for module in [m for m in sys.modules if m.partition(".")[0] == "plugged"]:
            monkeypatch.delitem(sys.modules, module)
        importlib.invalidate_caches()

    rewrite("mine.py", MATCHER)
    rewrite("rule.py", RULE)
    return rewrite


def provenance(name):
    return json.loads(Path(f"outputs/match/{name}/results.json").read_text())["provenance"]


def test_a_changed_plug_in_is_solved_anew_and_not_compared(cli, plugged):
    for name in ("a", "b"):
        assert cli(*SETTINGS, f"run_id={name}")[0] is None
        plugged("unrelated.py", "# a comment")
    plugged("rule.py", RULE.replace("arange(n)", "arange(n).flip(0)"))
    assert cli(*SETTINGS, "run_id=c")[0] is None
    plugged("rule.py", RULE)
    assert cli(*SETTINGS, "run_id=d")[0] is None
    assert [provenance(name)["matches"] for name in "abcd"] == [
        {"solved": 2}, {"read": 2}, {"solved": 2}, {"read": 2},
    ]  # fmt: skip
    a, b, c, _ = (provenance(name) for name in "abcd")
    assert a["code"] == b["code"] == c["code"]
    assert a["specs"] == b["specs"]
    assert {n for n in a["specs"] if a["specs"][n] != c["specs"][n]} == {"plugged.mine.Mine"}
    runs = [
        RunFolder(path, "finished", results=Results.load(path / "results.json"))
        for path in sorted(Path("outputs/match").iterdir())
    ]
    kept = keep_comparable(runs, None)
    assert [run.folder.name for run in compared(kept)] == ["a", "b", "d"]
    assert kept[2].reason.startswith("its source code of plugged.mine.Mine differs (")


def test_runs_of_other_specs_are_compared(tmp_path):
    runs = []
    for n, specs in enumerate([{"m.A": "1"}, {"m.A": "1", "m.B": "2"}, {"m.B": "2"}, {}]):
        folder = tmp_path / str(n)
        results = Results("x", {}, {"code": "c", "specs": specs}, status="finished")
        results.save(folder / "results.json")
        os.utime(folder / "results.json", (n, n))
        runs.append(RunFolder(folder, "finished", results=results))
    assert len(compared(keep_comparable(runs, None))) == 4


def test_the_code_is_that_of_the_run(tmp_path):
    hashes = codes_of(stages, summary, outside=SHOWING)
    assert made_with(None)["code"] == hashed(sorted(hashes.values()))
    assert made_with(None)["specs"] == {}

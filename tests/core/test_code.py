"""The hash of code depends on its imports and on nothing else."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from saematch.core.code import closure, code_of, codes_of
from saematch.evaluate.counting import CountRecorder
from saematch.evaluate.skipping import Skipping
from saematch.evaluate.splice import SpliceRecorder
from saematch.explain.contexts import ContextRecorder, ContextStore
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.levels import ChanceLevel
from saematch.matching.matchers import Greedy, Optimal, Random
from saematch.matching.objectives.parts import Parts
from saematch.runs import run
from saematch.runs.provenance import SHOWING
from saematch.sae.passes import TextPass
from saematch.sae.stand_in import ActivationRecorder, by_activation
from saematch.texts.token_cache import load_texts
from saematch.training.collect import collect

FILES = {
    "plug/__init__.py": "import plug.unrelated",
    "plug/top.py": """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from plug import helper
from .inner import deep
import saematch.core.pairs
if TYPE_CHECKING:
    from plug import typed
else:
    import plug.untyped

@dataclass(frozen=True)
class TopK:
    k: int = 3
    def __call__(self):
        import beside
        from plug import lazy as _
        return helper.HELP

@dataclass(frozen=True)
class Wrapper:
    inner: object

def solve():
    return 1
""",
    "plug/helper.py": "from plug import *\nHELP = 1",
    "plug/inner/__init__.py": "",
    "plug/inner/deep.py": "from .. import further\nfrom ..inner.deepest import NAME",
    "plug/inner/deepest.py": "NAME = 1",
    "plug/further.py": "import torch.nn",
    "plug/lazy.py": "",
    "plug/typed.py": "",
    "plug/untyped.py": "",
    "plug/unrelated.py": "",
    "plug/broken.py": "",
    "beside.py": "",
}
COVERED = {"plug.top", "plug", "plug.helper", "plug.inner.deep", "plug.inner.deepest",
           "plug.further", "plug.lazy", "plug.untyped", "plug.unrelated", "beside",
           "saematch.core.pairs"}  # fmt: skip
"""Expected modules. ``from plug import *`` imports ``plug``; ``plug.inner`` is only a parent."""


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """A package from outside; the call returns its module ``top`` as a new process imports it."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def fresh():
        for name in [name for name in sys.modules if name.partition(".")[0] in ("plug", "beside")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return importlib.import_module("plug.top")

    return fresh


def test_the_closure_is_what_is_imported(plug):
    modules = closure(plug().TopK)
    assert modules.pop("torch") is None
    assert set(modules) >= COVERED
    assert {name for name in modules if not name.startswith("saematch.")} == COVERED - {
        "saematch.core.pairs"
    }
    assert modules["plug.further"] == Path(sys.path[0]) / "plug/further.py"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_comment_counts_where_it_is_imported(plug, tmp_path, name):
    before = code_of(plug().TopK)
    assert code_of(plug().TopK) == before
    with (tmp_path / name).open("a") as file:
        file.write("\n# a comment")
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert (code_of(plug().TopK) != before) == (module in COVERED)


def test_what_a_hash_is_of(plug):
    top = plug()
    hashes = {code_of(top.TopK), code_of(top.TopK()), code_of(top.solve), code_of(top)}
    assert len(hashes) == 1, "all are in one module"
    assert set(codes_of(top.Wrapper(top.TopK()), {"a": [top.Wrapper(None)]})) == {
        "plug.top.Wrapper", "plug.top.TopK",
    }  # fmt: skip
    assert codes_of(top.Wrapper("a string"), 3.0).keys() == {"plug.top.Wrapper", "builtins.float"}


def test_specs_in_specs_count():
    assert code_of(Optimal()) != code_of(Greedy()) != code_of(Random(0))
    partial = Arm("threshold", Parts(), Optimal(unmatched=ChanceLevel()))
    names = ("arm.Arm", "objectives.parts.Parts", "matchers.optimal.Optimal", "levels.ChanceLevel")
    assert list(codes_of(partial)) == [f"saematch.matching.{name}" for name in names]


@pytest.mark.parametrize(
    ("line", "solver", "folding"),
    [
        ("from saematch import solve_assignment, LmSource", True, False),
        ("from saematch import fold", False, True),
        ("import saematch", True, True),
        ("import saematch.core.match", False, False),
    ],
)
def test_names_of_the_package_stand_for_the_modules_that_define_them(
    plug, tmp_path, line, solver, folding
):
    (tmp_path / "plug/helper.py").write_text(f"HELP = 1\ndef lazy():\n    {line}")
    modules = closure(plug().TopK)
    assert ("saematch.matching.solver.solve" in modules) == solver
    assert ("saematch.sae.folding" in modules) == folding


def test_a_file_with_an_error_counts_by_its_text(plug, tmp_path):
    (tmp_path / "plug/lazy.py").write_text("not python")
    before = code_of(plug().TopK)
    (tmp_path / "plug/lazy.py").write_text("no python")
    assert code_of(plug().TopK) != before


def test_modules_outside_are_left_out(plug):
    top = plug()
    (with_all,) = codes_of(top.TopK).values()
    (without,) = codes_of(top.TopK, outside=("plug.inner", "saematch")).values()
    assert with_all != without
    left = set(closure(top.TopK, ("plug.inner", "saematch")))
    assert left == COVERED - {
        "plug.inner.deep", "plug.inner.deepest", "plug.further", "saematch.core.pairs",
    }  # fmt: skip


def test_without_a_source_file_nothing_is_found_again(tmp_path):
    names = {"__name__": __name__}
    exec("class A: pass\ndef f(): pass", names)
    assert code_of(names["A"]) == code_of(names["A"])
    other = {"__name__": __name__}
    exec("class A: pass", other)
    assert code_of(names["A"]) != code_of(other["A"])
    script = tmp_path / "script.py"
    script.write_text(
        "from saematch.core.code import code_of\nclass A: pass\nprint(code_of(A), code_of(A))"
    )
    printed = [
        subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (first, again), (second, _) = (done.stdout.split() for done in printed)
    assert first == again != second


@dataclass(frozen=True)
class Local:
    """A spec in this file."""


def test_a_file_of_a_script_counts():
    assert closure(Local)[__name__] == Path(__file__)


KEPT = {
    "matches": (Arm, Parts, Optimal),
    "counts": (CountRecorder, TextPass, LmSource),
    "sums": (SpliceRecorder, TextPass, LmSource),
    "tokens": (load_texts, LmSource),
    "contexts": (ContextRecorder, ContextStore, TextPass, LmSource),
    "scales": (ActivationRecorder, by_activation, LmSource),
    "collections": (collect, LmSource),
}
UNRELATED = ("app", "compare", "report", "judge", "runs", "explorer", "zoo", "conf")


@pytest.mark.parametrize("kind", KEPT)
def test_keys_of_kept_files_hold_no_unrelated_code(kind):
    modules = {name for thing in KEPT[kind] for name in closure(thing)}
    assert not {n for n in modules if n.startswith(tuple(f"saematch.{u}" for u in UNRELATED))}
    others = {n for n in modules if n.startswith("saematch.matching.matchers.")}
    assert others <= {"saematch.matching.matchers.matcher", "saematch.matching.matchers.optimal"}
    assert "saematch.matching.matchers" not in modules, "a list of all matchers"
    if kind != "matches":
        assert "saematch.matching.solver.solve" not in modules
        assert {"torch", "transformers", "saematch.lm.hooks"} <= modules


def test_a_runs_code_is_all_that_makes_numbers():
    modules = set(closure(run, SHOWING))
    stages = ("evaluate.measures", "evaluate.intervals", "judge.judging", "sae.recorders",
              "sae.passes", "matching.arm", "training.steps", "runs.run",
              "chat.client")  # fmt: skip
    assert {f"saematch.{name}" for name in stages} <= modules
    assert not {name for name in modules if name.startswith(SHOWING)}
    of_report = {name for name in modules if name.startswith("saematch.report")}
    assert of_report == {"saematch.report.summary", "saematch.report.frames"}
    specs = {"saematch.matching.matchers.optimal", "saematch.evaluate.skipping"}
    assert not specs & modules, "specs have their own hashes"
    assert "saematch.evaluate.splice" in closure(Skipping, SHOWING)

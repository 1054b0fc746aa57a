"""``import saematch`` is light and exports every public name."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mypy import api

import saematch


def test_import_saematch_is_light():
    code = (
        "import sys, saematch; "
        "heavy = {'sae_lens', 'transformers', 'wandb', 'openai', 'torch', 'lightning', 'hydra'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['saematch', '--help']\n"
        "from saematch.app.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "+experiment=skip_layers" in done.stdout
    assert "an experiment: explore, feature_mse" in done.stdout


@pytest.mark.parametrize("words", [["sweep", "--help"], ["sweep", "sparsty"], ["compare", "-h"]])
def test_help_on_sweeps_and_a_mistyped_sweep_need_no_torch(words):
    code = (
        f"import sys; sys.argv = ['saematch', *{words}]\n"
        "from saematch.app.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_listing_of_saes_needs_no_torch():
    code = (
        "import sys; sys.argv = ['saematch', 'saes', 'gpt2']\n"
        "from saematch.app.main import main\n"
        "main()\nprint({'torch', 'sae_lens'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert "\n    model=gpt2_small sae=gpt2_v5" in done.stdout


def test_every_public_name_is_listed_and_leads_to_its_definition():
    assert set(saematch.__all__) <= set(dir(saematch))
    for name in saematch.__all__:
        assert getattr(saematch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = saematch.Nothing


def test_type_checkers_import_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(saematch.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {"__version__", *imports} == set(saematch.__all__)
    for name, module in imports.items():
        assert getattr(import_module(module), name) is getattr(saematch, name)


SNIPPET = """
import saematch
from saematch import Column, Match, Pair, SaeKey

def invert(match: Match) -> Match:
    reveal_type(match.compose(match.inverse()))
    reveal_type(match.certificate)
    return match.inverse()

reveal_type(Pair(SaeKey("a", 0), SaeKey("a", 1)).source)
reveal_type(saematch.Results.load)
Column(name=1, label="one")
saematch.Nothing
"""
ALONE = """
[mypy]
follow_imports = skip
[mypy-saematch.*]
follow_imports = silent
"""


def test_a_type_checker_sees_the_types_of_public_names(tmp_path, monkeypatch):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    (tmp_path / "mypy.ini").write_text(ALONE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYPYPATH", str(Path(saematch.__file__).parents[1]))
    output, errors, _ = api.run(["--config-file", "mypy.ini", "snippet.py"])
    lines = [line.removeprefix("snippet.py:") for line in output.splitlines()[:-1]]
    assert not errors
    assert lines == [
        '6: note: Revealed type is "saematch.core.match.Match"',
        '7: note: Revealed type is "saematch.core.match.Certificate | None"',
        '10: note: Revealed type is "tuple[str, int, fallback=saematch.core.pairs.SaeKey]"',
        '11: note: Revealed type is "def (path: str | pathlib.Path) -> '
        'saematch.core.results.Results"',
        '12: error: Argument "name" to "Column" has incompatible type "int"; expected "str"  '
        "[arg-type]",
        '13: error: Module has no attribute "Nothing"  [attr-defined]',
    ]

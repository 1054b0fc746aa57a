"""Tests use the public names of the package, so that its insides can change freely."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PRIVATE = re.compile(r"(?:^|[.:])_[A-Za-z]")
PATH = re.compile(r"saematch\.[\w.:]+")
OF_OTHERS = {"_asdict", "_replace", "_repr_html_", "_sweep_config"}
"""Names of named tuples, notebooks and W&B, which have no public ones for the same."""
STORE = "saematch.core.store"
FILES = sorted(Path(__file__).parent.rglob("*.py"))


def names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a file imports from the package, reads from objects and replaces."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith("saematch"):
                yield from (alias.name for alias in node.names)
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=attribute):
                yield attribute
            case ast.Call(func=ast.Attribute(attr="setattr" | "delattr"), args=arguments):
                constants = [a.value for a in arguments[:2] if isinstance(a, ast.Constant)]
                yield from (value for value in constants if isinstance(value, str))
            case ast.Constant(value=str(path)) if PATH.fullmatch(path):
                yield path


def private_names(text: str) -> list[str]:
    """Return the private names that a test file with this text uses."""
    return sorted({n for n in names(ast.parse(text)) if PRIVATE.search(n)} - OF_OTHERS)


def test_tests_use_public_names():
    used = {path.name: private_names(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: private for name, private in used.items() if private} == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from saematch.core.store import _digest", "_digest"),
        ("store._digest(file)", "_digest"),
        ("patch.setattr(store, '_digest', None)", "_digest"),
        (f"signalled('{STORE}:_digest')", f"{STORE}:_digest"),
    ],
)
def test_private_names_are_noticed(text, name):
    assert private_names(text) == [name]


def test_names_of_a_test_itself_are_its_own():
    assert private_names("from tools import _a\nself._b = batch._replace(id=_c)") == []

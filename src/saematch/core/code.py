"""Hashes of the source code that a kept file depends on."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from saematch.core.files import PACKAGE, hashed

Source = type | FunctionType | ModuleType
"""Object that a source file defines."""

LIBRARIES = ("torch", "transformers")
"""Packages whose versions are part of a hash if the code imports them."""
_HOMES: Mapping[str, str] = sys.modules["saematch"]._HOMES
"""Module of each public name. An import statement would add ``saematch`` itself to each closure."""
_PARSER = threading.Lock()
"""Lock of Python's parser, which fails in CPython 3.11 if two threads parse at the same time."""
_HEAP_TYPE = 1 << 9
"""Flag of classes that Python code defines; most classes of C libraries lack it."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}


def code_of(*things: Any) -> str:
    """Return a hash of the code of classes, functions, modules and specs; see ``codes_of``."""
    return hashed(sorted(codes_of(*things).values()))


def codes_of(*things: Any, outside: tuple[str, ...] = ()) -> dict[str, str]:
    """Return a hash of the code of each class, function and module, by its full name.

    A hash covers the source of the module and of the modules that it imports, directly or not, if
    they belong to saematch, belong to the same package, or lie next to that package outside of
    Python's folders of installed packages. Modules of the packages ``outside`` are left out. The
    hash also covers the versions of torch and transformers if one of the modules imports them.

    For a spec (a dataclass instance), the classes of the spec and of the specs and other objects in
    its fields are hashed. Code without a source file, such as a class in a notebook, gets a random
    hash that no other process has.
    """
    sources = (source for thing in things for source in _sources(thing))
    return {_name(source): _hash(source, outside) for source in sources}


def closure(source: Source, outside: tuple[str, ...] = ()) -> dict[str, Path | None]:
    """Return the files of the modules that a hash covers, by name; None for a library.

    Raises ``OSError`` or ``TypeError`` if the source is not defined in a file.
    """
    inspect.getsource(source)  # raises for a class that its module's file does not contain
    name = source.__name__ if isinstance(source, ModuleType) else source.__module__
    own = Path(str(inspect.getsourcefile(sys.modules[name])))
    if name == "__main__" or not own.is_file():
        raise OSError(f"{name} has no source file")
    home = own.parents[name.count(".") + (own.name == "__init__.py")]
    modules: dict[str, Path | None] = {name: own}
    waiting = [(name, own)]
    while waiting:
        module, path = waiting.pop()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for names in _imports(path.read_bytes(), package):
            imported, file = _find(names, name.partition(".")[0], home)
            if imported in modules or f"{imported}.".startswith(tuple(f"{o}." for o in outside)):
                continue
            if imported in LIBRARIES:
                modules[imported] = None
            elif file is not None:
                modules[imported] = file
                waiting.append((imported, file))
    return modules


def settings_text(thing: Any) -> str:
    """Return the settings of a spec as text: its ``repr``, or its attributes if it has none."""
    text = repr(thing)
    if not has_address(text):
        return text
    return f"{type(thing).__qualname__}({getattr(thing, '__dict__', text)})"


def has_address(text: str) -> bool:
    """Return whether a text contains a memory address, which differs between processes."""
    return _ADDRESS.search(text) is not None


def _sources(thing: Any, nested: bool = False) -> Iterator[Source]:
    if isinstance(thing, Source):
        yield thing
    elif isinstance(thing, Mapping | list | tuple):
        for value in thing.values() if isinstance(thing, Mapping) else thing:
            yield from _sources(value, True)
    elif is_dataclass(thing):
        yield type(thing)
        yield from _sources([getattr(thing, field.name) for field in fields(thing)], True)
    elif not nested or _is_plugged(type(thing)):
        yield type(thing)


def _is_plugged(cls: type) -> bool:
    """Return whether Python code outside the standard library defines a class."""
    if cls.__module__ == "__main__":
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    package = cls.__module__.partition(".")[0]
    is_ours = file.endswith(".py") and package not in sys.stdlib_module_names
    return is_ours and bool(cls.__flags__ & _HEAP_TYPE)


def _name(source: Source) -> str:
    if isinstance(source, ModuleType):
        return source.__name__
    return f"{source.__module__}.{source.__qualname__}"


@cache
def _hash(source: Source, outside: tuple[str, ...]) -> str:
    """Return the hash of the code. The cache is safe: reloading a module makes new classes."""
    try:
        with _PARSER:
            modules = closure(source, outside)
    except (OSError, TypeError):
        return hashed([uuid.uuid4().hex])
    parts = [
        [name, version(name) if path is None else path.read_bytes().hex()]
        for name, path in sorted(modules.items())
    ]
    return hashed(parts)


_WITH_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""Nodes that are or contain statements; imports are nowhere else."""


@cache
def _imports(source: bytes, package: str) -> tuple[tuple[str, ...], ...]:
    """Return possible absolute module names of each import; the first that exists is imported.

    ``from a import b`` imports the module ``a.b``, or else a name from the module ``a``. A public
    name of ``saematch`` imports the module that defines it. ``import saematch`` imports all of
    these modules, since the code may use any of them. A file with a syntax error imports nothing.
    """
    imports: list[tuple[str, ...]] = []
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()

    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children = [] if ast.unparse(node.test).startswith("not") else list(node.orelse)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            imports.extend((name,) for name in names)
            imports.extend((home,) for home in _HOMES.values() if "saematch" in names)
        if isinstance(node, ast.ImportFrom):
            depth = package.count(".") + 2 - node.level
            parents = package.split(".")[:depth] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            homes = _HOMES if base == "saematch" else {}
            names = [alias.name for alias in node.names]
            imports.extend((f"{base}.{name}", homes.get(name, base)) for name in names)
        waiting += [child for child in children if isinstance(child, _WITH_STATEMENTS)]
    return tuple(dict.fromkeys(imports))


def _find(names: tuple[str, ...], package: str, home: Path) -> tuple[str, Path | None]:
    """Return the first name of a module to hash and its file; or a library and None."""
    top = names[0].partition(".")[0]
    if top in LIBRARIES:
        return top, None
    if top == "saematch":
        home = PACKAGE.parent
    elif top != package and home.resolve() in _INSTALLED:
        return top, None
    for name in names:
        base = home.joinpath(*name.split("."))
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if path.is_file():
                return name, path
    return top, None

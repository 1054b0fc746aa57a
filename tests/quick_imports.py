"""Quicker imports with checks of types and shapes; imported before the first module of saematch."""

from __future__ import annotations

import gc
from functools import partial
from importlib.machinery import SourceFileLoader
from types import CodeType
from unittest.mock import patch

from jaxtyping import _import_hook as hook

gc.set_threshold(100_000, 20, 50)  # by default, garbage collection takes a seventh of all time


def _checked_code(self: hook._JaxtypingLoader, name: str) -> CodeType | None:
    """Return a module's code with checks of types and shapes, stored under its own file name."""
    path = partial(hook._optimized_cache_from_source, self._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", path):
        return SourceFileLoader.get_code(self, name)


# jaxtyping also changes the file names of the packages that a module imports, so Python would
# compile 3,000 of their files again
hook._JaxtypingLoader.get_code = _checked_code
hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module

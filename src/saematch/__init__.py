"""Follow the features of a language model from layer to layer.

The names below are the library's front door; each is imported when it is first used, so that
``import saematch`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SaeParams": "saematch.sae.params",
    "SaeOrigin": "saematch.sae.params",
    "fold": "saematch.sae.folding",
    "Parts": "saematch.matching.objectives",
    "Factors": "saematch.matching.objectives",
    "Match": "saematch.matching.match",
    "Certificate": "saematch.matching.match",
    "Arm": "saematch.matching.arm",
    "solve_assignment": "saematch.matching.assignment.solve",
    "Optimal": "saematch.matching.assignment",
    "ChanceLevel": "saematch.matching.assignment",
    "Scipy": "saematch.matching.assignment",
    "Greedy": "saematch.matching.assignment",
    "MutualNearest": "saematch.matching.assignment",
    "Identity": "saematch.matching.assignment",
    "Random": "saematch.matching.assignment",
    "SaeFolders": "saematch.sae.disk",
    "ZooSaes": "saematch.sae.source",
    "LmSource": "saematch.lm.source",
    "LanguageModel": "saematch.lm.hooks",
    "Results": "saematch.results",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saematch' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

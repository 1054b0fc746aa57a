"""Follow the features of a language model from layer to layer.

The names below are the library's front door; each is imported when it is first used, so that
``import saematch`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "SaeParams": "saematch.sae.params",
    "SaeOrigin": "saematch.sae.params",
    "fold": "saematch.sae.folding",
    "Parts": "saematch.matching.objectives.parts",
    "Factors": "saematch.matching.objectives.factors",
    "Pair": "saematch.core.pairs",
    "SaeKey": "saematch.core.pairs",
    "InputError": "saematch.core.errors",
    "Match": "saematch.core.match",
    "Certificate": "saematch.core.match",
    "Arm": "saematch.matching.arm",
    "SolverResources": "saematch.matching.solver.solve",
    "solve_assignment": "saematch.matching.solver.solve",
    "Optimal": "saematch.matching.matchers",
    "ChanceLevel": "saematch.matching.matchers",
    "Scipy": "saematch.matching.matchers",
    "Greedy": "saematch.matching.matchers",
    "MutualNearest": "saematch.matching.matchers",
    "Identity": "saematch.matching.matchers",
    "Random": "saematch.matching.matchers",
    "SaeFolders": "saematch.sae.sources.disk",
    "ZooSaes": "saematch.sae.sources.source",
    "LmSource": "saematch.lm.source",
    "LanguageModel": "saematch.lm.hooks",
    "Results": "saematch.core.results",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saematch' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

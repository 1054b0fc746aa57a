"""Origin of a run's results: SAEs, model, code and machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from saematch.core.code import codes_of
from saematch.core.files import PACKAGE, hashed
from saematch.core.pairs import DEFAULT, SaeKey
from saematch.report import summary
from saematch.runs import stages
from saematch.runs.context import Context
from saematch.runs.experiment import Experiment
from saematch.texts.readers import Reader


def sources(context: Context) -> dict[str, Any]:
    """Return the origin of the results: SAEs, models, texts, and the objective of each arm.

    The key ``models`` exists only if a suite has its own language model.
    """
    experiment, labels = context.experiment, context.experiment.model_labels
    models = {
        suite: vars(source) | _loaded(context.readers, labels.get(suite, ""))
        for suite, source in experiment.models.items()
    }
    return {
        "saes": {_sae_name(key): vars(sae.origin) for key, sae in context.saes.facts.items()},
        "model": vars(experiment.model) | _loaded(context.readers, ""),
        **({"models": models} if models else {}),
        "texts": dict(context.text_facts),
        "part_weights": {name: _settings(arm.objective) for name, arm in experiment.arms.items()},
    }


def _settings(spec: Any) -> dict[str, Any]:
    """Return the settings of a spec and of the specs in its fields."""
    return {n: _settings(v) if is_dataclass(v) else v for n, v in vars(spec).items()}


def _loaded(readers: Mapping[str, Reader], label: str) -> dict[str, str | None]:
    """Return revision and dtype of a loaded model; without it, only that no revision is known."""
    if label not in readers:
        return {"revision": None}
    lm = readers[label].lm
    dtype = str(next(lm.parameters()).dtype).removeprefix("torch.")
    return {"revision": lm.revision, "dtype": dtype}


def _sae_name(key: SaeKey) -> str:
    return str(key.layer) if key.suite == DEFAULT else f"{key.suite}/{key.layer}"


SHOWING = (
    "saematch.app",
    "saematch.compare",
    "saematch.explorer",
    "saematch.report.figures",
    "saematch.report.metrics",
    "saematch.runs.tracking",
)
"""Code that shows numbers without computing them. ``saematch.report.summary`` is not in the list,
since it computes a run's metrics."""


_version = cache(version)


def made_with(experiment: Experiment | None) -> dict[str, Any]:
    """Return seed, versions, commit, hashes of the code that computes numbers, and platform.

    ``code`` is the hash of the code that all runs share. ``specs`` has the hash of the code of each
    class in the config, such as a matcher of another package; without an experiment it is empty.
    """
    code = hashed(sorted(codes_of(stages, summary, outside=SHOWING).values()))
    packages = ("saematch", "torch", "transformers", "sae-lens", "lightning", "scipy", "wandb")
    return {
        "seed": None if experiment is None else experiment.seed,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "git_commit": _git_commit(),
        "code": code,
        "specs": {} if experiment is None else _specs(experiment),
        "platform": platform.platform(),
    }


def _specs(experiment: Experiment) -> dict[str, str]:
    values = [value for name, value in vars(experiment).items() if name != "logger"]
    return codes_of(values, outside=SHOWING)


def _git_commit() -> str | None:
    """Return the commit of the checkout that contains this code; None for an installed package.

    ``+changes`` follows the commit if code or presets have uncommitted changes.
    """
    root = PACKAGE.parents[1]
    git = ["git", "-C", str(root)]
    try:
        if not (root / ".git").exists():
            return None
        commit, changes = (
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "src", "conf"))
        )
        return commit.strip() + ("+changes" if changes.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None

"""What a run's results come from: SAEs, model, code and machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saematch.core.files import MEASURING, PRESETS, code_hash, hashed
from saematch.core.pairs import DEFAULT, SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.run.experiment import Experiment
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader


def sources(
    experiment: Experiment,
    saes: SaeShelf,
    lm: LanguageModel | None,
    texts: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, Reader],
) -> dict[str, Any]:
    """Return what the results come from: SAEs, models, texts, and the objective of each arm.

    ``texts`` holds what determines the texts of each text set; ``others`` has the language models
    of suites that have their own, by label. ``models`` is there if a suite has one.
    """
    model = vars(experiment.model) | {"revision": lm.revision if lm else None}
    labels = experiment.model_labels
    models = {
        suite: vars(source) | {"revision": _revision(others, labels.get(suite, ""), lm)}
        for suite, source in experiment.models.items()
    }
    return {
        "saes": {_sae_name(key): vars(sae.origin) for key, sae in saes.facts.items()},
        "model": model,
        **({"models": models} if models else {}),
        "texts": dict(texts),
        "part_weights": {name: vars(arm.objective) for name, arm in experiment.arms.items()},
    }


def _revision(others: Mapping[str, Reader], label: str, first: LanguageModel | None) -> str | None:
    lm = others[label].lm if label in others else first
    return lm.revision if lm else None


def _sae_name(key: SaeKey) -> str:
    return str(key.layer) if key.suite == DEFAULT else f"{key.suite}/{key.layer}"


def made_with(seed: int | None) -> dict[str, Any]:
    """Return seed, versions, commit, a hash of the code that makes numbers, and platform."""
    packages = ("saematch", "torch", "transformers", "sae-lens", "lightning", "scipy", "wandb")
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": _git_commit(),
        "code": _code(),
        "platform": platform.platform(),
    }


def _code() -> str:
    """Return a hash of the code and the presets that numbers come from, not of what shows them."""
    presets = sorted(PRESETS.rglob("*.yaml"))
    top = sorted(Path(__file__).parent.glob("*.py"))
    parts = [path.read_text(encoding="utf-8") for path in (*presets, *top)]
    return hashed([code_hash((*MEASURING, "explain", "judge", "tasks")), *parts])


def _git_commit() -> str | None:
    """Return the commit of the checkout that this code lies in, None for an installed package.

    ``+changes`` follows it if the code or the presets were changed since.
    """
    here = Path(__file__).parent
    git = ["git", "-C", str(here.parents[1])]
    try:
        if not (here.parents[1] / ".git").exists():
            return None
        commit, changes = (
            subprocess.run([*git, *about], capture_output=True, text=True, check=True).stdout
            for about in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "src", "conf"))
        )
        return commit.strip() + ("+changes" if changes.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None

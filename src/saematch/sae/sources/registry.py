"""SAELens' registry of released SAEs, read offline and without importing SAELens."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from saematch.core.errors import InputError


class RegisteredSae(NamedTuple):
    """One SAE of a release."""

    path: str
    """Where it is in its repository."""
    mean_l0: float | None
    """As the registry or the path states it."""
    neuronpedia_id: str | None
    """The source on Neuronpedia that explains it."""


@dataclass(frozen=True)
class Release:
    """SAEs that were published together."""

    name: str
    repo: str
    model: str
    loader: str
    """SAELens' loader of it, which knows how its files are laid out."""
    saes: dict[str, RegisteredSae]
    """By id."""

    def sae(self, sae_id: str) -> RegisteredSae:
        """Return an SAE of the release; ``InputError`` with close ids if it has none."""
        if sae_id not in self.saes:
            close = _close(sae_id, self.saes) or sorted(self.saes)[:3]
            raise InputError(
                f"{self.name} has no SAE {sae_id!r}; it has {', '.join(close)} (all of them: "
                f"saematch saes {self.name})"
            )
        return self.saes[sae_id]


@cache
def releases() -> dict[str, Release]:
    """Return every release by name, as SAELens ships them in a file of its package."""
    package = find_spec("sae_lens")
    if package is None or not package.submodule_search_locations:
        raise InputError("SAELens is not installed; pip install sae-lens")
    path = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    # ten times faster than the loader in Python, which is there even where this one is not
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        content = yaml.load(file, Loader=loader)
    return {name: _release(name, entry) for name, entry in content.items()}


def release(name: str) -> Release:
    """Return one release; ``InputError`` with close names if there is none of this name."""
    known = releases()
    if name not in known:
        raise InputError(
            f"SAELens knows no release {name!r}; {closest(name, known)}. saematch saes lists them, "
            "and SAEs on disk are taken with sae=disk sae.path=..."
        )
    return known[name]


def closest(name: str, known: Iterable[str]) -> str:
    """Return which known names are like this one, in words."""
    close = _close(name, known)
    return f"close ones: {', '.join(close)}" if close else "no name is close"


class ExplainedSae(NamedTuple):
    """An SAE of SAELens' registry that Neuronpedia explains."""

    release: str
    sae_id: str
    path: str
    """Where it is in its repository."""
    neuronpedia_id: str


def explained_as(name: str, sae_id: str, layer: int) -> str | None:
    """Return the source on Neuronpedia that explains this very SAE, None if there is none.

    The registry may list one file under several names, of which one alone is explained.
    """
    known = release(name)
    sae = known.sae(sae_id)
    same = (one for one in explained_near(known.repo, sae.path, layer) if one.path == sae.path)
    return sae.neuronpedia_id or next((one.neuronpedia_id for one in same), None)


def explained_near(repo: str, path: str, layer: int) -> list[ExplainedSae]:
    """Return the explained SAEs of a repository and layer, those with a path like ``path`` first.

    The layer is read from the source's name on Neuronpedia, which begins with it. Empty for a
    repository that the registry does not know.
    """
    found = [
        ExplainedSae(name, sae_id, sae.path, sae.neuronpedia_id)
        for name, known in releases().items()
        if known.repo == repo
        for sae_id, sae in known.saes.items()
        if sae.neuronpedia_id and sae.neuronpedia_id.partition("/")[2].startswith(f"{layer}-")
    ]
    alike = difflib.SequenceMatcher(b=path)

    def unlike(one: ExplainedSae) -> tuple[float, str]:
        alike.set_seq1(one.path)
        return -alike.ratio(), one.neuronpedia_id

    return sorted(found, key=unlike)


def _release(name: str, entry: dict[str, Any]) -> Release:
    saes = {str(one["id"]): _sae(one) for one in entry["saes"]}
    loader = entry.get("conversion_func") or "sae_lens"
    return Release(name, entry["repo_id"], entry["model"], loader, saes)


def _sae(entry: dict[str, Any]) -> RegisteredSae:
    path = str(entry["path"])
    in_path = re.search(r"average_l0_(\d+)", path)
    l0 = float(entry.get("l0") or (in_path[1] if in_path else 0))  # the registry's 0 is "unknown"
    return RegisteredSae(path, l0 or None, entry.get("neuronpedia"))


def _close(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3)

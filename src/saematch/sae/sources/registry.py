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
    """Path in the repository."""
    mean_l0: float | None
    """Mean L0 stated by the registry or in the path."""
    neuronpedia_id: str | None
    """Neuronpedia source that explains the SAE."""


@dataclass(frozen=True)
class Release:
    """A published collection of SAEs."""

    name: str
    repo: str
    model: str
    loader: str
    """SAELens loader for the layout of the release's files."""
    saes: dict[str, RegisteredSae]
    """SAEs by id."""

    def sae(self, sae_id: str) -> RegisteredSae:
        """Return an SAE of the release; ``InputError`` with similar ids if it is missing."""
        if sae_id not in self.saes:
            close = _close(sae_id, self.saes) or sorted(self.saes)[:3]
            raise InputError(
                f"{self.name} has no SAE {sae_id!r}; it has {', '.join(close)} (list all: "
                f"saematch saes {self.name})"
            )
        return self.saes[sae_id]


@cache
def releases() -> dict[str, Release]:
    """Return every release in SAELens' registry file, by name."""
    package = find_spec("sae_lens")
    if package is None or not package.submodule_search_locations:
        raise InputError("SAELens is not installed; pip install sae-lens")
    path = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    # the C loader is ten times faster than Python's, but not always installed
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        content = yaml.load(file, Loader=loader)
    return {name: _release(name, entry) for name, entry in content.items()}


def release(name: str) -> Release:
    """Return one release; ``InputError`` with similar names if there is none of this name."""
    registry = releases()
    if name not in registry:
        raise InputError(
            f"SAELens knows no release {name!r}; {closest(name, registry)}; list all with saematch "
            "saes, or use SAEs on disk with sae=disk sae.path=..."
        )
    return registry[name]


def closest(name: str, names: Iterable[str]) -> str:
    """Return a phrase that lists the names similar to ``name``."""
    close = _close(name, names)
    return f"similar names: {', '.join(close)}" if close else "no name is similar"


class ExplainedSae(NamedTuple):
    """A registered SAE with explanations on Neuronpedia."""

    release: str
    sae_id: str
    path: str
    """Path in the repository."""
    neuronpedia_id: str


def explained_as(name: str, sae_id: str, layer: int) -> str | None:
    """Return the Neuronpedia source that explains this SAE; None if there is none.

    The registry may list one file under several names, only one of which has a source.
    """
    published = release(name)
    sae = published.sae(sae_id)
    near = explained_near(published.repo, sae.path, layer)
    same_file = (explained.neuronpedia_id for explained in near if explained.path == sae.path)
    return sae.neuronpedia_id or next(same_file, None)


def explained_near(repo: str, path: str, layer: int) -> list[ExplainedSae]:
    """Return the explained SAEs of a repository and layer, starting with paths similar to ``path``.

    The name of a Neuronpedia source starts with its layer. The list is empty for a repository that
    the registry does not contain.
    """
    explained = [
        ExplainedSae(name, sae_id, sae.path, sae.neuronpedia_id)
        for name, published in releases().items()
        if published.repo == repo
        for sae_id, sae in published.saes.items()
        if sae.neuronpedia_id and sae.neuronpedia_id.partition("/")[2].startswith(f"{layer}-")
    ]
    similarity = difflib.SequenceMatcher(b=path)

    def difference(sae: ExplainedSae) -> tuple[float, str]:
        similarity.set_seq1(sae.path)
        return -similarity.ratio(), sae.neuronpedia_id

    return sorted(explained, key=difference)


def _release(name: str, entry: dict[str, Any]) -> Release:
    saes = {str(sae["id"]): _sae(sae) for sae in entry["saes"]}
    loader = entry.get("conversion_func") or "sae_lens"
    return Release(name, entry["repo_id"], entry["model"], loader, saes)


def _sae(entry: dict[str, Any]) -> RegisteredSae:
    path = str(entry["path"])
    in_path = re.search(r"average_l0_(\d+)", path)
    l0 = float(entry.get("l0") or (in_path[1] if in_path else 0))  # 0 in the registry means unknown
    return RegisteredSae(path, l0 or None, entry.get("neuronpedia"))


def _close(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(names), n=3)

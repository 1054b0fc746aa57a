"""SAEs of the releases that SAELens knows, from the Hugging Face hub or its cache."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from saematch.matching.match import Match
from saematch.sae.params import SaeParams
from saematch.sae.saelens import from_saelens
from saematch.sae.source import SaeOffer


@dataclass(frozen=True)
class ReleasedSaes:
    """Spec of one SAE a layer of a release in SAELens' registry."""

    release: str
    sae_id: str
    """Id inside the release, with ``{layer}`` in the place of the layer's number."""
    offers_release: str | None = None
    """Release that has the other sparsities; None if they are in the same one."""
    offers_id: str | None = None
    """Ids of those, with ``{layer}`` and ``{l0}``; None if there is nothing to choose from."""

    def __post_init__(self) -> None:
        if self.sae_id.count("{layer}") != 1:
            raise ValueError(f"sae.sae_id={self.sae_id!r} must hold {{layer}} once")

    @property
    def name(self) -> str:
        """Release and id."""
        return f"{self.release}/{self.sae_id}"

    def layers(self) -> list[int]:
        """Return the layers that the release has an SAE for."""
        before, after = (re.escape(part) for part in self.sae_id.split("{layer}"))
        ids = _ids(self.release)
        found = (re.fullmatch(rf"{before}(\d+){after}", sae_id) for sae_id in ids)
        return sorted(int(match[1]) for match in found if match)

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``ValueError`` if the registry lacks it or the hub cannot be reached."""
        sae_id = self.sae_id.replace("{layer}", str(layer))
        ids = _ids(self.release)
        if sae_id not in ids:
            close = difflib.get_close_matches(sae_id, ids, n=3) or sorted(ids)[:3]
            raise ValueError(f"{self.release} has no SAE {sae_id!r}; it has {', '.join(close)}")
        from huggingface_hub.errors import HfHubHTTPError
        from sae_lens import SAE

        try:
            sae = SAE.from_pretrained(self.release, sae_id, device="cpu", dtype="float32")
        except (OSError, HfHubHTTPError) as error:
            raise ValueError(
                f"cannot fetch {self.release}/{sae_id}: {str(error).splitlines()[0]}; SAEs on disk "
                "are taken with sae=saelens"
            ) from error
        repo, path = _entry(self.release).repo_id, ids[sae_id]
        params = from_saelens(sae, layer, repo, path, _revision(self.release))
        known: dict[str, Any] = {"neuronpedia_id": explained_as(self.release, sae_id, layer)}
        stated = _stated_l0(self.release, sae_id)
        if params.origin.mean_l0 is None and stated is not None:
            known["mean_l0"] = stated
        return replace(params, origin=replace(params.origin, **known))

    def truth(self, earlier: int, later: int) -> Match | None:
        """Nobody knows the truth of released SAEs."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the release's SAEs of every sparsity, by rising mean L0."""
        release = self.offers_release or self.release
        if self.offers_id is None:
            sae_id = self.sae_id.replace("{layer}", str(layer))
            return [SaeOffer(_stated_l0(release, sae_id) or 0.0, self)]
        at_layer = self.offers_id.replace("{layer}", str(layer))
        pattern = re.escape(at_layer).replace(r"\{l0\}", r"([\d.]+)")
        found = []
        for sae_id in _ids(release):
            told = re.fullmatch(pattern, sae_id)
            l0 = _stated_l0(release, sae_id)
            if told and l0:
                template = self.offers_id.replace("{l0}", told[1])
                found.append(SaeOffer(l0, ReleasedSaes(release, template)))
        return sorted(found, key=lambda offer: offer.mean_l0)


class ExplainedSae(NamedTuple):
    """An SAE of SAELens' registry that Neuronpedia explains."""

    release: str
    sae_id: str
    path: str
    """Where it is in its repository."""
    neuronpedia_id: str


def explained_as(release: str, sae_id: str, layer: int) -> str | None:
    """Return the source on Neuronpedia that explains this very SAE, None if there is none.

    The registry may list one file under several names, of which one alone is explained.
    """
    entry = _entry(release)
    own = entry.neuronpedia_id.get(sae_id)
    path = entry.saes_map[sae_id]
    same = (one for one in explained_near(entry.repo_id, path, layer) if one.path == path)
    return own or next((one.neuronpedia_id for one in same), None)


def explained_near(repo: str, path: str, layer: int) -> list[ExplainedSae]:
    """Return the explained SAEs of a repository and layer, those with a path like ``path`` first.

    The layer is read from the source's name on Neuronpedia, which begins with it. Empty for a
    repository that the registry does not know.
    """
    found = [
        ExplainedSae(release, sae_id, entry.saes_map[sae_id], neuronpedia_id)
        for release, entry in _directory().items()
        if entry.repo_id == repo
        for sae_id, neuronpedia_id in entry.neuronpedia_id.items()
        if neuronpedia_id and neuronpedia_id.partition("/")[2].startswith(f"{layer}-")
    ]
    alike = difflib.SequenceMatcher(b=path)

    def unlike(one: ExplainedSae) -> tuple[float, str]:
        alike.set_seq1(one.path)
        return -alike.ratio(), one.neuronpedia_id

    return sorted(found, key=unlike)


def _directory() -> dict[str, Any]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


def _entry(release: str) -> Any:
    directory = _directory()
    if release not in directory:
        close = difflib.get_close_matches(release, directory, n=3)
        raise ValueError(f"SAELens knows no release {release!r}; close ones: {', '.join(close)}")
    return directory[release]


def _ids(release: str) -> dict[str, str]:
    """Return the path of each SAE of a release, by id."""
    return _entry(release).saes_map


def _stated_l0(release: str, sae_id: str) -> float | None:
    """Return the mean L0 that the registry, or the path of the file, states."""
    entry = _entry(release)
    stated = entry.expected_l0.get(sae_id)
    in_path = re.search(r"average_l0_(\d+)", entry.saes_map[sae_id])
    return float(stated or (in_path[1] if in_path else 0)) or None


def _revision(release: str) -> str:
    """Return the commit of the release that the cache holds, as ``main`` of the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    repo = repo_folder_name(repo_id=_entry(release).repo_id, repo_type="model")
    path = Path(HF_HUB_CACHE) / repo / "refs" / "main"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""

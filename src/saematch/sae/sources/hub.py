"""SAEs from the Hugging Face hub or its cache, through SAELens' loaders."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from saematch.core.downloads import Download, hub_model
from saematch.core.errors import InputError
from saematch.sae.formats.dictionary_learning import trainer_settings
from saematch.sae.formats.formats import gemma_scope_settings, sparsify_settings
from saematch.sae.formats.llama_scope import llama_scope_settings
from saematch.sae.formats.saelens import read_saelens_config, without_advice
from saematch.sae.formats.saelens_fields import check_computation
from saematch.sae.sources.registry import Release

log = logging.getLogger(__name__)

WEIGHTS = (".npz", ".safetensors", ".pt", ".pth")
"""How files of weights end."""
ON_DISK = "SAEs on disk are taken with sae=disk sae.path=..."


SETTINGS: Mapping[str, Callable[[Path], Any]] = {
    "sae_lens": read_saelens_config,
    "gemma_3": gemma_scope_settings,
    "llama_scope": llama_scope_settings,
    "sparsify": sparsify_settings,
    "dictionary_learning_1": trainer_settings,
}
"""By SAELens' loader: what refuses settings that the loader drops though they count."""


class Fetched(NamedTuple):
    """An SAE as SAELens has it, and where its weights came from."""

    sae: Any
    revision: str
    """Commit of the repository."""


def log_download(saes: Iterable[tuple[Release, str]]) -> None:
    """Log the size of those SAEs' weights that are not in the cache.

    Logs nothing if all are, and if the hub gives no answer: fetching says why.
    """
    folders: dict[str, set[str]] = {}
    for release, sae_id in saes:
        folders.setdefault(release.repo, set()).add(release.sae(sae_id).path)
    total = Download()
    for repo, paths in folders.items():
        model = hub_model(repo)
        if model is not None:
            files = {file for file in model.sizes if _is_weights(Path(file))}
            wanted = {f for f in files for path in paths if f == path or f.startswith(f"{path}/")}
            total = total.joined(model.to_fetch(wanted.__contains__))
    if total.n_files:
        log.info("SAEs: %s to fetch", total)


def fetch(release: Release, sae_id: str) -> Fetched:
    """Load an SAE, from the cache where the hub says that it is the newest or cannot be asked.

    Raises ``InputError`` if there is neither the hub nor a copy in the cache, if the hub does not
    have the file or does not give it to everybody, if the download breaks off more often than it is
    taken up again, if a file is damaged, and if settings that may change what the SAE computes are
    not understood. The hub's client shows the progress of a download.
    """
    from huggingface_hub.errors import HTTPError
    from sae_lens import SAE

    where = f"{release.name}/{sae_id}"
    with _files() as files, without_advice():
        try:
            sae = SAE.from_pretrained(release.name, sae_id, device="cpu", dtype="float32")
        except (OSError, HTTPError) as error:
            raise InputError(f"cannot fetch {where}: {_reason(error, release)}") from error
        except DAMAGES as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            path = _damaged(files, error)
            raise InputError(
                f"{where}: the file {path} is damaged or of another layout ({reason}); delete it, "
                "and the next run fetches it again"
            ) from error
    for path in files:
        if path.suffix == ".json" and release.loader in SETTINGS:
            settings = SETTINGS[release.loader](path)
            if release.loader == "sae_lens":
                check_computation(f"{where}: {path}", settings, sae.cfg.architecture())
    weights = _weights(files)
    return Fetched(sae, weights.parts[weights.parts.index("snapshots") + 1])


DAMAGES = (SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError,
           RuntimeError, json.JSONDecodeError)  # fmt: skip
"""What reading a damaged file ends in."""


def _reason(error: BaseException, release: Release) -> str:
    """Return why a file could not be had, and what to try."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo = release.repo
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is given only to those who accepted its licence: accept it on the page of "
            "the repository, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no repository {repo}, or does not show it without a token: set HF_TOKEN "
            f"if you have access to it; {ON_DISK}"
        )
    if isinstance(error, LocalEntryNotFoundError):
        answer = getattr(error.__cause__, "response", None)
        asked = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub cannot be reached"
        asked = asked if answer is None else f"the hub answers with error {answer.status_code}"
        return f"it is not in the cache, and {asked}; try again with a connection. {ON_DISK}"
    if isinstance(error, EntryNotFoundError):
        return f"{repo} no longer has the file that SAELens' registry names; {ON_DISK}"
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the download broke off ({said}); try again. {ON_DISK}"


@contextmanager
def _files() -> Iterator[list[Path]]:
    """Note the files of the cache that SAELens' loaders read, in their order.

    For Gemma Scope 2 SAELens asks the hub for the shapes of the weights, cached or not; they are
    read from the file here, so that what is in the cache needs no connection.
    """
    from sae_lens.loading import pretrained_sae_loaders as loaders

    files: list[Path] = []
    download, shapes = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes

    def noted(*args: Any, **kwargs: Any) -> str:
        path = download(*args, **kwargs)
        files.append(Path(path))
        return path

    def read_shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(noted(repo_id, filename), framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = noted, read_shapes
    try:
        yield files
    finally:
        loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = download, shapes


def _weights(files: list[Path]) -> Path:
    """Return the file of weights, if it was read."""
    return next(filter(_is_weights, files), files[-1])


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHTS and not path.name.startswith("sparsity")  # statistics


def _damaged(files: list[Path], error: Exception) -> Path:
    """Return the file to delete: what the cache's entry links to, else it would be linked again."""
    if isinstance(error, json.JSONDecodeError):
        return next(path for path in files if path.suffix == ".json").resolve()
    return _weights(files).resolve()

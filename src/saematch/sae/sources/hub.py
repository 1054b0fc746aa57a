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

from saematch.core.downloads import Download, hub_model, is_cached, no_answer
from saematch.core.errors import InputError
from saematch.core.progress import counted
from saematch.sae.formats.dictionary_learning import trainer_settings
from saematch.sae.formats.formats import gemma_scope_settings, sparsify_settings
from saematch.sae.formats.llama_scope import llama_scope_settings
from saematch.sae.formats.saelens import read_saelens_config, without_advice
from saematch.sae.formats.saelens_fields import check_computation
from saematch.sae.sources.registry import Release

log = logging.getLogger(__name__)

WEIGHTS = (".npz", ".safetensors", ".pt", ".pth")
"""Endings of the names of weights files."""
ON_DISK = "for SAEs on disk, use sae=disk sae.path=..."

SETTINGS: Mapping[str, Callable[[Path], Any]] = {
    "sae_lens": read_saelens_config,
    "gemma_3": gemma_scope_settings,
    "llama_scope": llama_scope_settings,
    "sparsify": sparsify_settings,
    "dictionary_learning_1": trainer_settings,
}
"""Functions that refuse settings which a loader of SAELens ignores although they matter."""


class Fetched(NamedTuple):
    """An SAE loaded by SAELens, and the commit of its weights."""

    sae: Any
    revision: str
    """Commit of the repository."""


def log_download(saes: Iterable[tuple[Release, str]]) -> None:
    """Log how much must be downloaded because it is not in the cache.

    Raises ``InputError`` if the hub does not answer and an SAE is not in the cache.
    """
    folders: dict[str, set[str]] = {}
    for release, sae_id in saes:
        folders.setdefault(release.repo, set()).add(release.sae(sae_id).path)
    total = Download()
    for repo, paths in folders.items():
        model = hub_model(repo)
        if model is None:
            missing = sorted(path for path in paths if not is_cached(repo, path))
            if missing:
                raise InputError(
                    f"cannot fetch {counted(len(missing), 'SAE')} of {repo} (such as {missing[0]}):"
                    f" not in the cache, and {no_answer()}; {ON_DISK}"
                )
        else:
            files = {file for file in model.sizes if _is_weights(Path(file))}
            needed = {f for f in files for path in paths if f == path or f.startswith(f"{path}/")}
            total = total.joined(model.to_fetch(needed.__contains__))
    if total.n_files:
        log.info("SAEs: %s to fetch", total)


def fetch(release: Release, sae_id: str) -> Fetched:
    """Load an SAE. The cache's copy is used if it is up to date or the hub cannot be reached.

    Raises ``InputError`` if neither the hub nor the cache has the file, if access to it is
    restricted, if the download fails repeatedly, if a file is damaged, or if unknown settings may
    change what the SAE computes. The hub's client shows the download's
    progress.
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
                f"{where}: the file {path} is damaged or has another layout ({reason}); delete it, "
                "and the next run downloads it again"
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
"""Errors that a damaged file causes."""


def _reason(error: BaseException, release: Release) -> str:
    """Return why a file could not be loaded, and what to try."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo = release.repo
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is only available to users who accepted its licence: accept it on the "
            "repository's page, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no repository {repo}, or hides it without a token: set HF_TOKEN if "
            f"you have access to it; {ON_DISK}"
        )
    if isinstance(error, LocalEntryNotFoundError):
        answer = getattr(error.__cause__, "response", None)
        cause = (
            no_answer() if answer is None else f"the hub answers with error {answer.status_code}"
        )
        return f"it is not in the cache, and {cause}; try again with a connection; {ON_DISK}"
    if isinstance(error, EntryNotFoundError):
        return f"{repo} no longer has the file that SAELens' registry names; {ON_DISK}"
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the download failed ({message}); try again; {ON_DISK}"


@contextmanager
def _files() -> Iterator[list[Path]]:
    """Record the cached files that SAELens' loaders read, in order.

    For Gemma Scope 2, SAELens asks the hub for the shapes of the weights even if the cache has
    them. Here the shapes are read from the file, so that cached SAEs need no connection.
    """
    from sae_lens.loading import pretrained_sae_loaders as loaders

    files: list[Path] = []
    download, shapes = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes

    def recorded(*args: Any, **kwargs: Any) -> str:
        path = download(*args, **kwargs)
        files.append(Path(path))
        return path

    def read_shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(recorded(repo_id, filename), framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = recorded, read_shapes
    try:
        yield files
    finally:
        loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = download, shapes


def _weights(files: list[Path]) -> Path:
    """Return the weights file, or the last file if no weights were read."""
    return next(filter(_is_weights, files), files[-1])


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHTS and not path.name.startswith("sparsity")  # statistics


def _damaged(files: list[Path], error: Exception) -> Path:
    """Return the damaged file: the target of the cache's link, which would otherwise be reused."""
    if isinstance(error, json.JSONDecodeError):
        return next(path for path in files if path.suffix == ".json").resolve()
    return _weights(files).resolve()

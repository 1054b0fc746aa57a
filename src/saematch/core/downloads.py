"""What a run is going to fetch from the Hugging Face hub: files and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from saematch.core.files import readable_size

TIMEOUT = 30.0
"""Seconds in which the hub has to answer."""


class Download(NamedTuple):
    """Files that are not in the hub's cache yet."""

    n_files: int = 0
    n_bytes: int = 0

    def joined(self, other: Download) -> Download:
        """Return both together."""
        return Download(self.n_files + other.n_files, self.n_bytes + other.n_bytes)

    def __str__(self) -> str:
        files = "1 file" if self.n_files == 1 else f"{self.n_files} files"
        return f"{readable_size(self.n_bytes)} in {files}"


class HubModel(NamedTuple):
    """The files of a model repository at one commit."""

    repo: str
    commit: str
    sizes: Mapping[str, int]
    """Size of each file in bytes, by its path."""

    def to_fetch(self, wanted: Callable[[str], bool]) -> Download:
        """Return how much of the wanted files is not in the cache."""
        from huggingface_hub import try_to_load_from_cache

        missing = [
            size
            for path, size in self.sizes.items()
            if wanted(path)
            and not isinstance(try_to_load_from_cache(self.repo, path, revision=self.commit), str)
        ]
        return Download(len(missing), sum(missing))


def hub_model(repo: str, revision: str | None = None) -> HubModel | None:
    """Return the files of a repository; None for a folder, or if the hub gives no answer.

    Fetching a file says what is wrong with the repository or the connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if Path(repo).is_dir():
        return None
    try:
        found = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except (OSError, ValueError, HTTPError):
        return None
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return HubModel(repo, found.sha or "main", sizes)


def cached_commit(repo: str, revision: str | None) -> str | None:
    """Return the commit of the configuration in the cache; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(repo).is_dir():
        return None
    path = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None

"""Files that a run will download from the Hugging Face hub, and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from saematch.core.files import readable_size

TIMEOUT = 30.0
"""Seconds to wait for a reply of the hub."""


class Download(NamedTuple):
    """Number and size of files that are not in the local cache of the hub."""

    n_files: int = 0
    n_bytes: int = 0

    def joined(self, other: Download) -> Download:
        """Return the sum of both downloads."""
        return Download(self.n_files + other.n_files, self.n_bytes + other.n_bytes)

    def __str__(self) -> str:
        files = "1 file" if self.n_files == 1 else f"{self.n_files} files"
        return f"{readable_size(self.n_bytes)} in {files}"


class HubModel(NamedTuple):
    """Files of a model repository at one commit."""

    repo: str
    commit: str
    sizes: Mapping[str, int]
    """Size of each file in bytes, by its path."""

    def to_fetch(self, selects: Callable[[str], bool]) -> Download:
        """Return the download of the selected files that are not in the cache."""
        from huggingface_hub import try_to_load_from_cache

        missing = [
            size
            for path, size in self.sizes.items()
            if selects(path)
            and not isinstance(try_to_load_from_cache(self.repo, path, revision=self.commit), str)
        ]
        return Download(len(missing), sum(missing))


def hub_model(repo: str, revision: str | None = None) -> HubModel | None:
    """Return the files of a repository; None for a folder, or if the hub does not answer.

    If the hub answers with an error, no file is returned: the later download reports the error.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if Path(repo).is_dir():
        return None
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except HfHubHTTPError:
        return HubModel(repo, revision or "main", {})
    except (OSError, ValueError, HTTPError):
        return None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubModel(repo, info.sha or "main", sizes)


def no_answer() -> str:
    """Return why the hub does not answer."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the Hugging Face hub cannot be reached"


def is_cached(repo: str, pattern: str, revision: str | None = None) -> bool:
    """Return whether a folder, or the cached files of a repository, have a file of a pattern.

    Only the given ``revision`` is searched if it is a commit.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    if Path(repo).is_dir():
        return True
    snapshots = Path(HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots")
    commit = revision if revision and (snapshots / revision).is_dir() else "*"
    return any(snapshots.glob(f"{commit}/{pattern}"))


def cached_commit(repo: str, revision: str | None) -> str | None:
    """Return the commit of the cached ``config.json``; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(repo).is_dir():
        return None
    path = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None

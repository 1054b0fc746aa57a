"""Names of language models."""

from __future__ import annotations


def bare(name: str) -> str:
    """Return a name in lower case, without the owner or folder before the last slash."""
    return name.rstrip("/").rpartition("/")[2].lower()

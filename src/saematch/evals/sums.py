"""Sums by text, one file a batch: what an evaluation leaves, and all that its tables need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saematch.files import replacing

SMALL = 2**15
"""Counts by text and feature below this are stored in 16 bits."""


@dataclass(frozen=True)
class TextSums:
    """The sums of one data set, read from its files when asked for."""

    files: tuple[Path, ...]
    """In the order of the batches."""

    def __getitem__(self, name: str) -> Tensor:
        """Return one sum of every text, ``[n_texts, ...]`` in float64 or int64."""
        parts = []
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        found = torch.cat(parts)
        return found.double() if found.is_floating_point() else found.long()


def write_sums(path: Path, key: str, sums: Mapping[str, Tensor]) -> None:
    """Write the sums of one batch."""
    with replacing(path) as part:
        save_file({name: _stored(sums[name]) for name in sums}, part, {"key": key})


def have_sums(path: Path, key: str) -> bool:
    """Whether the file holds sums of this key; ``ValueError`` if it is damaged."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("key") == key
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error


def missing(folder: Path, keys: Sequence[str]) -> list[int]:
    """Return the numbers of the batches that the folder lacks."""
    return [n for n, key in enumerate(keys) if not have_sums(batch_path(folder, n), key)]


def batch_path(folder: Path, number: int) -> Path:
    """Return where a batch's sums lie."""
    return folder / f"{number:05}.safetensors"


def _stored(sums: Tensor) -> Tensor:
    sums = sums.cpu().contiguous()
    counts = sums.dim() == 2 and not sums.is_floating_point()
    if counts and (not sums.numel() or int(sums.max()) < SMALL):
        return sums.to(torch.int16)
    return sums

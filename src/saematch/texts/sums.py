"""Sums by text, one file a batch: what an evaluation leaves, and all that its tables need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from saematch.core.store import write

SMALL = 2**15
"""Counts by text and feature below this are stored in 16 bits."""


@dataclass(frozen=True)
class TextSums:
    """The sums of one data set, read from its files when asked for."""

    parts: tuple[tuple[Path, ...], ...]
    """Of each part of the evaluation the files, in the order of the batches."""

    @cached_property
    def _open(self) -> list[list[Any]]:
        return [[safe_open(p, framework="pt").__enter__() for p in files] for files in self.parts]

    @cached_property
    def _part_of(self) -> dict[str, int]:
        """Name of a sum -> the first part that has it; what several have is the same in all."""
        first = [list(files[0].keys()) for files in self._open]
        return {name: part for part in reversed(range(len(first))) for name in first[part]}

    def __getitem__(self, name: str) -> Tensor:
        """Return one sum of every text, ``[n_texts, ...]`` in float64 or int64."""
        files = self._open[self._part_of[name]]
        found = torch.cat([file.get_tensor(name) for file in files])
        return found.double() if found.is_floating_point() else found.long()


def write_sums(path: Path, sums: Mapping[str, Tensor]) -> None:
    """Write the sums of one batch."""
    write(path, {name: _stored(name, value) for name, value in sums.items()})


def _stored(name: str, sums: Tensor) -> Tensor:
    """Return the sums as they are kept: what is large at half its size.

    Errors' sums as float32 change an explained variance by about 1e-7; counts lose nothing.
    """
    sums = sums.cpu().contiguous()
    if name.startswith("error_sum"):
        return sums.float()
    if sums.dim() == 2 and not sums.is_floating_point() and int(sums.max()) < SMALL:
        return sums.to(torch.int16)
    return sums

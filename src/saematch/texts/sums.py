"""Sums by text in one file for each batch. Evaluations record them and compute tables from them."""

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
    """The sums of one data set, read from files on access."""

    parts: tuple[tuple[Path, ...], ...]
    """Files of each part of the pass, in the order of the batches."""

    @cached_property
    def _open(self) -> list[list[Any]]:
        return [[safe_open(p, framework="pt").__enter__() for p in files] for files in self.parts]

    @cached_property
    def _part_of(self) -> dict[str, int]:
        """The first part that has each sum, by name. Other parts with the sum have equal values."""
        first = [list(files[0].keys()) for files in self._open]
        return {name: part for part in reversed(range(len(first))) for name in first[part]}

    def __getitem__(self, name: str) -> Tensor:
        """Return one sum of every text, ``[n_texts, ...]`` in float64 or int64."""
        files = self._open[self._part_of[name]]
        sums = torch.cat([file.get_tensor(name) for file in files])
        return sums.double() if sums.is_floating_point() else sums.long()


def write_sums(path: Path, sums: Mapping[str, Tensor]) -> None:
    """Write the sums of one batch."""
    write(path, {name: _stored(name, value) for name, value in sums.items()})


def _stored(name: str, sums: Tensor) -> Tensor:
    """Return the sums in the type in which they are stored: half the size for large tensors.

    Sums of errors in float32 change an explained variance by about 1e-7. Counts are exact.
    """
    sums = sums.cpu().contiguous()
    if name.startswith("error_sum"):
        return sums.float()
    if sums.dim() == 2 and sums.dtype == torch.int64 and sums.numel():
        least, greatest = map(int, sums.aminmax())
        return sums.to(torch.int16) if least >= 0 and greatest < SMALL else sums
    return sums

"""Hidden states of one layer on many tokens, read from disk as they are used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

SAMPLE = 32_768
"""Largest number of rows for estimates of norms and scales."""


@dataclass(frozen=True)
class HiddenStates:
    """Rows of ``resid_post``, one per token, in any floating-point dtype; read as float32."""

    parts: tuple[Tensor, ...]
    """Tensors ``[n, d_model]`` that together hold all rows, in order."""
    chosen: Int64[Tensor, " n"] | None = None
    """Indices of the selected rows; None for all rows."""

    @classmethod
    def open(cls, files: Sequence[Path], layer: int) -> HiddenStates:
        """Map one layer of a store into memory; rows are read when they are used."""
        parts = []
        for path in files:
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(states_name(layer)))
        return cls(tuple(parts))

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.chosen is None else len(self.chosen)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parts[0].shape[1]

    @cached_property
    def _ends(self) -> Int64[Tensor, " parts"]:
        return torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def rows(self, numbers: Int64[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """Return rows in float32, in the order of ``numbers``."""
        if self.chosen is not None:
            numbers = self.chosen[numbers]
        out = torch.empty(len(numbers), self.d_model)
        part_of = torch.searchsorted(self._ends, numbers, right=True)
        for part in part_of.unique().tolist():
            in_part = part_of == part
            first = int(self._ends[part]) - len(self.parts[part])
            out[in_part] = self.parts[part][numbers[in_part] - first].float()
        return out

    def choose(self, numbers: Int64[Tensor, " n"]) -> HiddenStates:
        """Return hidden states with only the given rows."""
        return replace(self, chosen=numbers if self.chosen is None else self.chosen[numbers])

    def spread(self, n: int) -> Float[Tensor, "n d_model"]:
        """Return at most ``n`` rows, evenly spread."""
        step = max(1, len(self) // n)
        return self.rows(torch.arange(0, len(self), step)[:n])

    @cached_property
    def scale(self) -> float:
        """Factor that makes the mean norm ``sqrt(d_model)``, estimated on a sample."""
        norms = torch.linalg.vector_norm(self.spread(SAMPLE), dim=1)
        return math.sqrt(self.d_model) / float(norms.mean())


def states_name(layer: int) -> str:
    """Return the name of a layer's rows in a file of a store."""
    return f"resid_post|{layer}"

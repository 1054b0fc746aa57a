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
"""Rows that norms and scales are estimated on, at most."""


@dataclass(frozen=True)
class HiddenStates:
    """Rows of ``resid_post``, one a token, in any floating-point dtype; read in float32."""

    parts: tuple[Tensor, ...]
    """Each ``[n, d_model]``; together they are all rows, in order."""
    chosen: Int64[Tensor, " n"] | None = None
    """Numbers of the rows that count; None for all."""

    @classmethod
    def open(cls, files: Sequence[Path], layer: int) -> HiddenStates:
        """Map one layer of a store into memory; no row is read before it is asked for."""
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
        """Return rows in float32, in the order asked for."""
        if self.chosen is not None:
            numbers = self.chosen[numbers]
        out = torch.empty(len(numbers), self.d_model)
        part_of = torch.searchsorted(self._ends, numbers, right=True)
        for part in part_of.unique().tolist():
            here = part_of == part
            first = int(self._ends[part]) - len(self.parts[part])
            out[here] = self.parts[part][numbers[here] - first].float()
        return out

    def choose(self, numbers: Int64[Tensor, " n"]) -> HiddenStates:
        """Return some of the rows as hidden states of their own."""
        return replace(self, chosen=numbers if self.chosen is None else self.chosen[numbers])

    def spread(self, n: int) -> Float[Tensor, "n d_model"]:
        """Return at most ``n`` rows, evenly spread."""
        step = max(1, len(self) // n)
        return self.rows(torch.arange(0, len(self), step)[:n])

    @cached_property
    def scale(self) -> float:
        """The factor that brings the mean norm to ``sqrt(d_model)``, from a sample."""
        norms = torch.linalg.vector_norm(self.spread(SAMPLE), dim=1)
        return math.sqrt(self.d_model) / float(norms.mean())


def states_name(layer: int) -> str:
    """Return the name of a layer's rows in a file of a store."""
    return f"resid_post|{layer}"

"""A language model and the texts in its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch


class Reader(NamedTuple):
    """A language model of a run, and the texts in its tokens."""

    lm: LanguageModel
    tokens: Mapping[str, tuple[TokenBatch, ...]]
    """Batches of each text set that evaluations read."""
    calibration: Mapping[str, tuple[TokenBatch, ...]] = {}
    """Batches of each text set that quantities are fitted to; empty if the run fits none."""

    @property
    def texts(self) -> list[Int64[Tensor, " n_tokens"]]:
        """Token ids of each text, BOS included.

        The number of a text is its position here: text sets, their batches and the texts of a batch
        in order.
        """
        batches = [batch for of_set in self.tokens.values() for batch in of_set]
        return [
            ids[:length]
            for batch in batches
            for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True)
        ]

    def reads_like(self, other: Reader) -> bool:
        """Return whether both models read the same tokens, and count the same positions."""
        return self.tokens.keys() == other.tokens.keys() and all(
            len(batches) == len(other.tokens[name])
            and all(map(_equal, batches, other.tokens[name]))
            for name, batches in self.tokens.items()
        )


def _equal(first: TokenBatch, second: TokenBatch) -> bool:
    return all(
        torch.equal(getattr(first, field.name), getattr(second, field.name))
        for field in fields(TokenBatch)
    )

"""A language model together with the texts in its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from saematch.lm.hooks import LanguageModel
from saematch.texts.tokens import TokenBatch


class Reader(NamedTuple):
    """A language model of a run, and what it reads."""

    lm: LanguageModel
    tokens: Mapping[str, tuple[TokenBatch, ...]]
    """The batches of each text set."""

    def reads_like(self, other: Reader) -> bool:
        """Whether both models read the same tokens, of which the same count."""
        return self.tokens.keys() == other.tokens.keys() and all(
            len(batches) == len(other.tokens[name])
            and all(map(_equal, batches, other.tokens[name]))
            for name, batches in self.tokens.items()
        )


def _equal(one: TokenBatch, other: TokenBatch) -> bool:
    return all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
    )

"""From texts to batches of tokens, and which positions count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from saematch.data.texts import TextSet


@dataclass(frozen=True)
class TokenBatch:
    """Sequences that begin with BOS, or with a token in its place, padded on the right."""

    ids: Int64[Tensor, "batch seq"]
    counts: Bool[Tensor, "batch seq"]
    """Positions whose hidden state counts: neither the first one nor padding."""

    @property
    def predicts(self) -> Bool[Tensor, "batch seq"]:
        """Positions whose loss counts: those that count and whose next token is no padding."""
        after = torch.zeros_like(self.counts)
        after[:, :-1] = self.counts[:, 1:]
        return self.counts & after

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(self.ids.to(device), self.counts.to(device))


@dataclass(frozen=True)
class TokenisedTexts:
    """The tokens of the texts of one kind, one text after another."""

    ids: Int64[Tensor, " n_tokens"]
    lengths: Int64[Tensor, " n_texts"]
    """Tokens of each text; its first one does not count."""

    def batches(self, size: int) -> tuple[TokenBatch, ...]:
        """Return batches of ``size`` texts of like length, long ones first."""
        rows = sorted(self.ids.split(self.lengths.tolist()), key=len, reverse=True)
        return tuple(_pad(rows[start : start + size]) for start in range(0, len(rows), size))


def tokenise(texts: TextSet, tokenizer: Any, bos_id: int | None, max_tokens: int) -> TokenisedTexts:
    """Put BOS before each text (nothing if ``bos_id`` is None) and cut after ``max_tokens``.

    Raises ``ValueError`` for a text with fewer than two tokens that count: the loss of a token is
    predicted from the one before it.
    """
    first = [] if bos_id is None else [bos_id]
    encoded = tokenizer(list(texts.texts), add_special_tokens=False).input_ids
    for number, ids in enumerate(encoded):
        if len(first) + len(ids) < 3:
            raise ValueError(
                f"text {number} of the set {texts.name!r} has {len(ids)} token(s): "
                f"{texts.texts[number][:40]!r}; at least {3 - len(first)} are needed, so take it "
                "out"
            )
    rows = [torch.tensor([*first, *ids[: max_tokens - len(first)]]) for ids in encoded]
    return TokenisedTexts(torch.cat(rows), torch.tensor([len(row) for row in rows]))


def _pad(rows: list[Tensor]) -> TokenBatch:
    """Pad on the right; which token fills up does not matter, since nothing looks at it."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    place = torch.arange(ids.shape[1])
    return TokenBatch(ids, (place > 0) & (place < lengths[:, None]))

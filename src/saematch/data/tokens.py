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
    """Sequences that begin with BOS and are padded on the right."""

    ids: Int64[Tensor, "batch seq"]
    counts: Bool[Tensor, "batch seq"]
    """Positions whose hidden state counts: neither BOS nor padding."""

    @property
    def predicts(self) -> Bool[Tensor, "batch seq"]:
        """Positions whose loss counts: those that count and whose next token is no padding."""
        after = torch.zeros_like(self.counts)
        after[:, :-1] = self.counts[:, 1:]
        return self.counts & after

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(self.ids.to(device), self.counts.to(device))


def tokenise(
    texts: TextSet, tokenizer: Any, max_tokens: int, batch_size: int
) -> tuple[TokenBatch, ...]:
    """Cut texts into batches of like length, long ones first.

    Raises ``ValueError`` for a tokenizer without BOS and for a text shorter than two tokens.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "this tokenizer has no BOS token; every text must begin with one, since metrics leave "
            "the first position out"
        )
    encoded = tokenizer(list(texts.texts), add_special_tokens=False).input_ids
    for number, ids in enumerate(encoded):
        if len(ids) < 2:
            raise ValueError(
                f"text {number} of the set {texts.name!r} has {len(ids)} token(s): "
                f"{texts.texts[number][:40]!r}; at least two are needed, so take it out"
            )
    rows = [[tokenizer.bos_token_id, *ids[: max_tokens - 1]] for ids in encoded]
    rows.sort(key=len, reverse=True)
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return tuple(_pad(chunk, tokenizer.bos_token_id) for chunk in chunks)


def _pad(rows: list[list[int]], filler: int) -> TokenBatch:
    """Pad on the right; which token fills up does not matter, since nothing looks at it."""
    length = len(rows[0])
    ids = torch.tensor([row + [filler] * (length - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    place = torch.arange(length)
    return TokenBatch(ids, (place > 0) & (place < lengths[:, None]))

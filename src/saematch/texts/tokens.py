"""Tokenise texts, make batches, and decide which positions count in metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.texts.sources import TextSet


@runtime_checkable
class Vocabulary(Protocol):
    """Tokenizer and special tokens of a language model."""

    tokenizer: Any
    """Tokenizer of transformers."""
    bos_id: int | None
    """Token at the beginning of every text; None if the model has none."""
    special_ids: frozenset[int]
    """Tokens that metrics exclude at any position."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded on the right. They begin with BOS if the model has it."""

    ids: Int64[Tensor, "batch seq"]
    counts: Bool[Tensor, "batch seq"]
    """Positions whose hidden state counts: not the first position, special tokens or padding."""
    lengths: Int64[Tensor, " batch"]
    """Number of tokens of each sequence, without padding."""

    @property
    def predicts(self) -> Bool[Tensor, "batch seq"]:
        """Positions whose loss counts: the position and the next one both count."""
        after = torch.zeros_like(self.counts)
        after[:, :-1] = self.counts[:, 1:]
        return self.counts & after

    @property
    def n_special(self) -> Int64[Tensor, " batch"]:
        """Number of special tokens of each sequence after its first position."""
        return self.lengths - 1 - self.counts.sum(dim=1)

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(*(part.to(device) for part in (self.ids, self.counts, self.lengths)))

    @cached_property
    def identity(self) -> str:
        """Hash of everything in the batch."""
        return hashed([self.ids.tolist(), self.counts.tolist(), self.lengths.tolist()])


@dataclass(frozen=True)
class TokenisedTexts:
    """The tokens of the texts of one set, concatenated."""

    ids: Int64[Tensor, " n_tokens"]
    counts: Bool[Tensor, " n_tokens"]
    """Positions whose hidden state counts: not the first token of a text or special tokens."""
    lengths: Int64[Tensor, " n_texts"]
    """Number of tokens of each text."""

    @property
    def n_special(self) -> int:
        """Number of special tokens in the texts, not counting the first token of each text."""
        return len(self.ids) - len(self.lengths) - int(self.counts.sum())

    def only(self, texts: Bool[Tensor, " n_texts"]) -> TokenisedTexts:
        """Return some of the texts."""
        kept = torch.repeat_interleave(texts, self.lengths)
        return TokenisedTexts(self.ids[kept], self.counts[kept], self.lengths[texts])

    def batches(self, size: int) -> tuple[TokenBatch, ...]:
        """Return batches of ``size`` texts of similar length, the longest first."""
        order = torch.argsort(self.lengths, descending=True, stable=True).tolist()
        ids, counts = (part.split(self.lengths.tolist()) for part in (self.ids, self.counts))
        return tuple(
            TokenBatch(
                pad_sequence([ids[n] for n in chosen], batch_first=True),
                pad_sequence([counts[n] for n in chosen], batch_first=True),
                self.lengths[chosen],
            )
            for chosen in (order[start : start + size] for start in range(0, len(order), size))
        )


def counting(ids: Int64[Tensor, "*n seq"], special: Iterable[int]) -> Bool[Tensor, "*n seq"]:
    """Return which positions count: all but the first of each sequence and special tokens."""
    counts = ~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))
    counts[..., :1] = False
    return counts


def whole_windows(ids: Int64[Tensor, "batch seq"], special: Iterable[int]) -> TokenBatch:
    """Return windows of tokens without padding as a batch."""
    return TokenBatch(ids, counting(ids, special), torch.full((len(ids),), ids.shape[1]))


def tokenise(texts: TextSet, vocabulary: Vocabulary, max_tokens: int) -> TokenisedTexts:
    """Return the tokens of texts, with BOS before each text, cut after ``max_tokens``.

    The model's own tokenizer encodes the texts, so the name of a special token in a text becomes
    that token. If a text begins with BOS, no second BOS is added. Raises ``InputError`` for a text
    without two consecutive tokens that count, since a token is predicted from the token before it.
    """
    bos = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    rows, counts = [], []
    encoded = vocabulary.tokenizer(list(texts.texts), add_special_tokens=False).input_ids
    for number, ids in enumerate(encoded):
        whole = ids if ids[:1] == bos else bos + ids
        row = torch.tensor(whole[:max_tokens], dtype=torch.int64)
        counted = counting(row, vocabulary.special_ids)
        if not (counted[1:] & counted[:-1]).any():
            less = f" or raise dataset.max_tokens={max_tokens}" * (len(whole) > max_tokens)
            raise InputError(
                f"{texts.place(number)}: {texts.texts[number][:40]!r} has {len(row)} tokens, of "
                f"which {int(counted.sum())} count (the first one and special tokens do not); at "
                f"least 2 consecutive tokens must count, so remove this text{less}"
            )
        rows.append(row)
        counts.append(counted)
    lengths = torch.tensor([len(row) for row in rows])
    return TokenisedTexts(torch.cat(rows), torch.cat(counts), lengths)

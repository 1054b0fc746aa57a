"""Random priorities of tokens, by which tokens are sampled.

A priority is a hash of the seed, text and position, so a sample depends neither on the order of the
texts nor on the batches.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.files import hashed
from saematch.texts.tokens import TokenBatch

FIRST_POSITION = 2
"""First position of sampled tokens; the first token of a text has position 0."""


def text_keys(batch: TokenBatch) -> Int64[Tensor, " batch"]:
    """Return a hash of the tokens of each text."""
    rows = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
    keys = [int(hashed(ids[:length])[:15], 16) for ids, length in rows]
    return torch.tensor(keys, dtype=torch.int64)


def hashes(seed: int, *parts: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return a hash of the seed and of corresponding numbers, from 0 to 2^62 - 1."""
    state = torch.full_like(parts[0], seed % 2**61 + 1)
    for part in parts:
        state = _mixed(state * _INCREMENT + part)
    return state & (2**62 - 1)


_INCREMENT = -7046029254386353131  # 2^64 / golden ratio, as a signed number
_FACTORS = (-4658895280553007687, -7723592293110705685)


def _mixed(numbers: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the numbers after the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Int64[Tensor, " n"], shift: int) -> Int64[Tensor, " n"]:
    """Return the numbers shifted to the right as unsigned numbers."""
    return (numbers >> shift) & ((1 << (64 - shift)) - 1)

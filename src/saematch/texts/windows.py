"""Tokens for training: windows of equal length, cut from many documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from saematch.core.errors import InputError
from saematch.texts.sources import TextSet
from saematch.texts.tokens import Vocabulary

DOCUMENTS = 256
"""Documents tokenised at a time: enough for a fast tokenizer's threads, few enough for memory."""


def windows(
    texts: Sequence[TextSet], vocabulary: Vocabulary, context: int, n_tokens: int, seed: int
) -> Int64[Tensor, "n context"]:
    """Cut documents into ``ceil(n_tokens / context)`` windows, as many of each set as of any other.

    A window begins with BOS and goes on over the end of a document, after which BOS stands once
    more. Without BOS a window just begins, and documents are parted by the tokenizer's end-of-text
    token, if it has one. A document that begins or ends with the token that parts documents gets
    no second one. Documents are taken in random order, as many as needed; the windows of each set
    come in random order and the sets take turns, so that a part of the windows from the first on
    has equal shares too. The same seed gives the same windows.

    Raises ``InputError`` for sizes that make no sense and for a set with too few tokens.
    """
    least = 2 if vocabulary.bos_id is None else 3
    if context < least or n_tokens < 1 or not texts:
        raise InputError(
            f"collection.context={context}, n_tokens={n_tokens}, {len(texts)} text set(s): a "
            f"window has at least {least} tokens, and one token and one text set are needed"
        )
    n, n_sets = math.ceil(n_tokens / context), len(texts)
    rows = np.empty((n, context), dtype=np.int64)
    with tqdm(total=n, desc="tokenise", unit="window", leave=False) as bar:
        for place, of_kind in enumerate(texts):
            share = rows[place::n_sets]
            random = np.random.default_rng([seed, place])
            found = 0
            for row in _cut(_documents(of_kind, vocabulary, random), vocabulary.bos_id, context):
                if found == len(share):
                    break
                share[found] = row
                found += 1
                bar.update()
            if found < len(share):
                raise InputError(
                    f"collection.n_tokens={n_tokens} takes {len(share) * context} tokens of the "
                    f"text set {of_kind.name!r}, which has only {found * context} in whole windows "
                    f"of {context}: take more texts (dataset.n_texts=null is all), or "
                    f"collection.n_tokens={found * n_sets * context} at most"
                )
            share[:] = share[random.permutation(len(share))]
    return torch.from_numpy(rows)


def _documents(
    texts: TextSet, vocabulary: Vocabulary, random: np.random.Generator
) -> Iterator[list[int]]:
    """Yield the tokens of each document that has any, in random order, and what follows them."""
    tokenizer, bos_id = vocabulary.tokenizer, vocabulary.bos_id
    between = tokenizer.eos_token_id if bos_id is None else bos_id
    separator = [] if between is None else [between]
    order = random.permutation(len(texts.texts))
    for start in range(0, len(order), DOCUMENTS):
        some = [texts.texts[i] for i in order[start : start + DOCUMENTS]]
        for ids in tokenizer(some, add_special_tokens=False).input_ids:
            first = 1 if ids[:1] == separator else 0
            last = len(ids) - 1 if ids[-1:] == separator else len(ids)
            if ids[first:last]:
                yield ids[first:last] + separator


def _cut(documents: Iterator[list[int]], bos_id: int | None, context: int) -> Iterator[np.ndarray]:
    """Yield windows; what is left at the end and fills none is left out."""
    first = np.array([] if bos_id is None else [bos_id], dtype=np.int64)
    size = context - len(first)
    left = np.array([], dtype=np.int64)
    for document in documents:
        left = np.concatenate([left, np.asarray(document, dtype=np.int64)])
        start = 0
        while True:
            if bos_id is not None and start < len(left) and left[start] == bos_id:
                start += 1  # the window's own BOS stands for it
            if start + size > len(left):
                break
            yield np.concatenate([first, left[start : start + size]])
            start += size
        left = left[start:]

"""Cut documents into windows of equal length, for training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.progress import progress
from saematch.texts.sources import TextSet
from saematch.texts.tokens import Vocabulary

DOCUMENTS = 256
"""Number of documents tokenised at once: enough for a fast tokenizer's threads."""


def windows(
    texts: Sequence[TextSet], vocabulary: Vocabulary, context: int, n_tokens: int, seed: int
) -> Int64[Tensor, "n context"]:
    """Return ``ceil(n_tokens / context)`` windows of documents, in equal shares of each text set.

    A window begins with BOS and may continue over the end of a document, after which another BOS
    follows. If the model has no BOS, the tokenizer's end-of-text token separates documents, if it
    has one. A document that already begins or ends with the separator gets no second one. Documents
    are read in random order, as many as needed. The windows of each set are in random order and the
    sets alternate, so the first windows also have equal shares. The same seed gives the same
    windows.

    Raises ``InputError`` if a size is invalid or a set has too few tokens.
    """
    least = 2 if vocabulary.bos_id is None else 3
    if context < least or n_tokens < 1 or not texts:
        raise InputError(
            f"collection.context={context}, n_tokens={n_tokens}, {len(texts)} text set(s): a "
            f"window has at least {least} tokens, and at least one token and one text set are "
            "needed"
        )
    n, n_sets = math.ceil(n_tokens / context), len(texts)
    rows = np.empty((n, context), dtype=np.int64)
    with progress("tokenise", n, "window") as bar:
        for number, text_set in enumerate(texts):
            share = rows[number::n_sets]
            random = np.random.default_rng([seed, number])
            n_cut = 0
            for row in _cut(_documents(text_set, vocabulary, random), vocabulary.bos_id, context):
                if n_cut == len(share):
                    break
                share[n_cut] = row
                n_cut += 1
                bar.advance()
            if n_cut < len(share):
                raise InputError(
                    f"collection.n_tokens={n_tokens} takes {len(share) * context} tokens of the "
                    f"text set {text_set.name!r}, which has only {n_cut * context} in whole "
                    f"windows of {context}: take more texts (dataset.n_texts=null takes all), or "
                    f"collection.n_tokens={n_cut * n_sets * context} at most"
                )
            share[:] = share[random.permutation(len(share))]
    return torch.from_numpy(rows)


def _documents(
    texts: TextSet, vocabulary: Vocabulary, random: np.random.Generator
) -> Iterator[list[int]]:
    """Yield the tokens of each document that is not empty, and its separator, in random order."""
    tokenizer, bos_id = vocabulary.tokenizer, vocabulary.bos_id
    between = tokenizer.eos_token_id if bos_id is None else bos_id
    separator = [] if between is None else [between]
    order = random.permutation(len(texts.texts))
    for start in range(0, len(order), DOCUMENTS):
        documents = [texts.texts[i] for i in order[start : start + DOCUMENTS]]
        for ids in tokenizer(documents, add_special_tokens=False).input_ids:
            first = 1 if ids[:1] == separator else 0
            last = len(ids) - 1 if ids[-1:] == separator else len(ids)
            if ids[first:last]:
                yield ids[first:last] + separator


def _cut(documents: Iterator[list[int]], bos_id: int | None, context: int) -> Iterator[np.ndarray]:
    """Yield windows of the documents' tokens; an incomplete last window is dropped."""
    first = np.array([] if bos_id is None else [bos_id], dtype=np.int64)
    size = context - len(first)
    left = np.array([], dtype=np.int64)
    for document in documents:
        left = np.concatenate([left, np.asarray(document, dtype=np.int64)])
        start = 0
        while True:
            if bos_id is not None and start < len(left) and left[start] == bos_id:
                start += 1  # the window has its own BOS
            if start + size > len(left):
                break
            yield np.concatenate([first, left[start : start + size]])
            start += size
        left = left[start:]

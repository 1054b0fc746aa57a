"""Sums over the tokens on which two features are active together, for all pairs of features.

The sums are exact: they include every pair of features and every token. A block of source features
has dense sums with all target features. The kernel adds up one source feature after another, so
that its sums stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numba import njit
from scipy.sparse import csc_array, csr_array

from saematch.core.pairs import Pair, SaeKey
from saematch.sae.activations import SparseFeatures
from saematch.sae.codes import codes_of
from saematch.sae.recorders import Recording

CELLS_AT_ONCE = 1 << 21
"""Pairs of features in a block: 24 MiB of sums, and at most 130 MiB while scores are computed."""
ENTRIES_AT_ONCE = 1 << 22
"""Active features of an SAE in memory, 60,000 tokens of 70: 64 MiB for both SAEs, and 200 MiB while
they are read. If there are more, each block of source features reads the recording again."""


@dataclass(frozen=True)
class Totals:
    """Sums over all tokens for each feature of one SAE."""

    n_active: Int64[np.ndarray, " n_features"]
    """Number of tokens on which the feature is active."""
    sums: Float64[np.ndarray, " n_features"]
    """Sum of its activations."""
    squares: Float64[np.ndarray, " n_features"]
    """Sum of their squares."""
    n_tokens: int
    """Number of tokens, including those without an active feature."""

    @classmethod
    def of(cls, recording: Recording, key: SaeKey, n_features: int) -> Totals:
        """Add up the recorded activations of an SAE."""
        sums, n_tokens = np.zeros((3, n_features)), 0
        for batch in codes_of(recording, key, n_features):
            features, values = batch.features.numpy(), batch.values.double().numpy()
            for power, total in enumerate(sums):
                total += np.bincount(features, values**power, minlength=n_features)
            n_tokens += batch.n_tokens
        return cls(sums[0].astype(np.int64), sums[1], sums[2], n_tokens)


@dataclass(frozen=True)
class CoActive:
    """Pairs of features that are active together, for a block of source features.

    Entries are sorted by source feature, then target feature.
    """

    features: Int64[np.ndarray, " n_block"]
    """Source features of the block."""
    places: Int64[np.ndarray, " n"]
    """Place in the block of each entry's source feature."""
    columns: Int64[np.ndarray, " n"]
    """Target feature of each entry."""
    n_both: Int64[np.ndarray, " n"]
    """Number of tokens on which both features are active."""
    sums: Float64[np.ndarray, " n"]
    """Sum over these tokens of the product of both activations, or of their quotient."""
    source: Totals
    target: Totals

    @property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """Source feature of each entry."""
        return self.features[self.places]


class _Chunk(NamedTuple):
    """Codes of both SAEs on some tokens."""

    source: csc_array
    """``[n_tokens, n_source]``, by feature."""
    target: csr_array
    """``[n_tokens, n_target]``, by token."""


@dataclass(frozen=True)
class PairCodes:
    """The recorded codes of two SAEs on the same tokens."""

    recording: Recording
    pair: Pair
    """The keys in the recording."""
    n_source: int
    n_target: int

    def co_active(self, floor: int, divide: bool = False) -> Iterator[CoActive]:
        """Yield the pairs that are active together on at least ``floor`` tokens, by blocks.

        ``sums`` are those of ``f z``, or with ``divide`` of ``f / z``, for activations ``f`` of the
        source and ``z`` of the target.
        """
        sizes = zip(self.pair, (self.n_source, self.n_target), strict=True)
        source, target = (Totals.of(self.recording, key, size) for key, size in sizes)
        only = list(islice(self._chunks(), 2))
        if len(only) > 1:
            only.clear()
        live = np.flatnonzero(source.n_active >= floor)
        n_rows = max(1, CELLS_AT_ONCE // self.n_target)
        for start in range(0, len(live), n_rows):
            features = live[start : start + n_rows]
            n_both = np.zeros((len(features), self.n_target), np.int32)
            sums = np.zeros(n_both.shape)
            for f, z in only or self._chunks():
                _add(
                    features, f.indptr, f.indices, f.data, z.indptr, z.indices, z.data, divide,
                    n_both, sums,
                )  # fmt: skip
            cells = np.flatnonzero(n_both >= floor)
            places, columns = np.divmod(cells, self.n_target)
            yield CoActive(
                features, places, columns, n_both.ravel()[cells].astype(np.int64),
                sums.ravel()[cells], source, target,
            )  # fmt: skip

    def _chunks(self) -> Iterator[_Chunk]:
        """Yield the codes in chunks of at least ``ENTRIES_AT_ONCE``, and then the rest."""
        waiting: list[tuple[SparseFeatures, SparseFeatures]] = []
        n_entries = 0
        sides = (
            codes_of(self.recording, self.pair.source, self.n_source),
            codes_of(self.recording, self.pair.target, self.n_target),
        )
        for f, z in zip(*sides, strict=True):
            waiting.append((f, z))
            n_entries += max(len(f.features), len(z.features))
            if n_entries >= ENTRIES_AT_ONCE:
                yield _chunk(waiting)
                waiting, n_entries = [], 0
        if waiting:
            yield _chunk(waiting)


def _chunk(batches: Sequence[tuple[SparseFeatures, SparseFeatures]]) -> _Chunk:
    source, target = (_matrix(side) for side in zip(*batches, strict=True))
    return _Chunk(source.tocsc(), target)


def _matrix(batches: Sequence[SparseFeatures]) -> csr_array:
    """Return the codes of batches as a matrix ``[n_tokens, n_features]``."""
    counts = torch.cat([batch.counts() for batch in batches])
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    features = torch.cat([batch.features.int() for batch in batches])
    values = torch.cat([batch.values for batch in batches])
    arrays = values.numpy(), features.numpy(), ends.int().numpy()
    return csr_array(arrays, shape=(len(counts), batches[0].n_features))


@njit(cache=True, nogil=True)
@no_type_check
def _add(
    features, starts, tokens, values, token_starts, columns, target_values, divide, n_both, sums
):
    """Add the tokens of a chunk to the numbers and sums of a block of source features."""
    for place in range(len(features)):
        feature = features[place]
        for entry in range(starts[feature], starts[feature + 1]):
            token, f = tokens[entry], np.float64(values[entry])
            for other in range(token_starts[token], token_starts[token + 1]):
                column, z = columns[other], np.float64(target_values[other])
                n_both[place, column] += 1
                sums[place, column] += f / z if divide else f * z

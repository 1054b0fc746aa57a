"""Contexts of single features: their largest activations in texts, and those of their partners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from scipy.sparse import csc_array, csr_array

from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.evaluate.activity import BLOCK, ReadTexts, features_of
from saematch.evaluate.effects import NONE, ranked_partners

N_SOURCES = 2
"""Largest number of sources of a target feature whose activations are kept, for each arm."""
PARTNER_COLUMNS = ("feature", "rank", "partner_suite", "partner_layer", "partner", "values")
"""Columns of the files of partners."""


class Window(NamedTuple):
    """Number of tokens around the token with the largest activation."""

    before: int
    after: int


@dataclass(frozen=True)
class Contexts:
    """Windows of tokens around the largest activations of features, sorted by feature and rank."""

    features: Int64[np.ndarray, " n"]
    ranks: Int64[np.ndarray, " n"]
    """Rank of each context of a feature, from 0."""
    texts: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]
    """Place of the first token of each window."""
    lengths: Int64[np.ndarray, " n"]
    """Number of tokens of each window."""
    tokens: Int64[np.ndarray, "n width"]
    """Number of each token among those that count; ``NONE`` for others and after the window."""

    @classmethod
    def of(
        cls, codes: csc_array, features: Int64[np.ndarray, " n_chosen"], n: int, texts: ReadTexts,
        window: Window,
    ) -> Contexts:  # fmt: skip
        """Return the ``n`` contexts of largest activation of each chosen feature, in order.

        A text gives a feature at most one context, around its largest activation in this text. If
        activations are equal, the earlier token and the earlier text come first.
        """
        peaks = [
            _peaks(codes[:, features[start : start + BLOCK]], texts, n)
            for start in range(0, len(features), BLOCK)
        ]
        numbers = [of_block.features + number * BLOCK for number, of_block in enumerate(peaks)]
        empty = [np.zeros(0, np.int64)]
        token = np.concatenate(empty + [of_block.tokens for of_block in peaks])
        text, place = texts.text[token], texts.places[token]
        first = np.maximum(texts.starts[text], place - window.before)
        end = np.minimum(texts.starts[text + 1], place + window.after + 1)
        places = first[:, None] + np.arange(window.before + 1 + window.after)
        inside = places < end[:, None]
        tokens = np.where(inside, texts.counted[np.where(inside, places, 0)], NONE)
        return cls(
            features[np.concatenate(empty + numbers)],
            np.concatenate(empty + [of_block.ranks for of_block in peaks]),
            text, first, end - first, tokens,
        )  # fmt: skip

    def values(self, codes: csr_array | csc_array) -> Float32[np.ndarray, "n width"]:
        """Return the activation of the context's feature on each of its tokens."""
        return activations(codes, self.tokens, self.features)

    def frame(self, codes: csc_array, texts: ReadTexts) -> pd.DataFrame:
        """Return a row for each context; see ``RunData.contexts``."""
        dataset, words = texts.dataset, np.array(texts.words, object)
        return pd.DataFrame({
            "feature": self.features,
            "rank": self.ranks,
            "dataset": pd.Series([dataset[text] for text in self.texts], dtype=str),
            "text": self.texts,
            "start": self.places - texts.starts[self.texts],
            "tokens": [
                words[texts.word[place : place + length]]
                for place, length in zip(self.places, self.lengths, strict=True)
            ],
            "values": cut(self.values(codes), self.lengths),
        })  # fmt: skip

    def partners(
        self, key: SaeKey, links: Int64[np.ndarray, "n_links 2"], codes: csr_array
    ) -> pd.DataFrame:
        """Return a row for each context and linked feature of another SAE that is active in it.

        ``links`` has rows of a feature and its partner, which may repeat; ``codes`` are those of
        the partner's SAE, ``key``. Columns: see ``RunData.partners``.
        """
        pairs = np.unique(links[np.isin(links[:, 0], self.features)], axis=0)
        start, end = (
            np.searchsorted(self.features, pairs[:, 0], side) for side in ("left", "right")
        )
        partner = np.repeat(pairs[:, 1], end - start)
        before = np.cumsum(end - start) - (end - start)
        chosen = np.arange(len(partner)) + np.repeat(start - before, end - start)
        values = activations(codes, self.tokens[chosen], partner)
        active = values.any(axis=1)
        chosen = chosen[active]
        return pd.DataFrame({
            "feature": self.features[chosen],
            "rank": self.ranks[chosen],
            "partner_suite": pd.Series([key.suite] * len(chosen), dtype=str),
            "partner_layer": np.full(len(chosen), key.layer),
            "partner": partner[active],
            "values": cut(values[active], self.lengths[chosen]),
        })  # fmt: skip


def links_of(match: Match, most: int) -> Int64[np.ndarray, "n_links 2"]:
    """Return each source feature with each of its ``most`` best partners."""
    ranked = ranked_partners(match, most)
    sources, ranks = np.nonzero(ranked != NONE)
    return np.stack([sources, ranked[sources, ranks]], axis=1)


class _Peaks(NamedTuple):
    """Largest activations of chosen features, sorted by feature and rank."""

    features: np.ndarray
    ranks: np.ndarray
    tokens: np.ndarray


def _peaks(chosen: csc_array, texts: ReadTexts, n: int) -> _Peaks:
    """Return the tokens of the ``n`` largest activations of each feature, at most one a text."""
    feature, text = features_of(chosen), texts.text[chosen.indices]
    if not len(feature):
        return _Peaks(*np.zeros((3, 0), np.int64))
    is_first = np.ones(len(feature), bool)
    is_first[1:] = (feature[1:] != feature[:-1]) | (text[1:] != text[:-1])
    group = np.cumsum(is_first) - 1
    largest = np.maximum.reduceat(chosen.data, np.flatnonzero(is_first))
    equal = np.flatnonzero(chosen.data == largest[group])
    peak = equal[np.diff(group[equal], prepend=-1) > 0]
    feature, token = feature[peak], chosen.indices[peak]
    order = np.lexsort((token, -largest, feature))
    feature = feature[order]
    rank = np.arange(len(order)) - np.searchsorted(feature, feature)
    kept = rank < n
    return _Peaks(feature[kept], rank[kept], token[order][kept].astype(np.int64))


def activations(
    codes: csr_array | csc_array,
    tokens: Int64[np.ndarray, "n width"],
    features: Int64[np.ndarray, " n"],
) -> Float32[np.ndarray, "n width"]:
    """Return the activation of a feature on each row of tokens; 0 for tokens that are ``NONE``."""
    values = np.zeros(tokens.shape, np.float32)
    rows, places = np.nonzero(tokens != NONE)
    if len(rows):
        values[rows, places] = codes[tokens[rows, places], features[rows]]
    return values


def cut(
    values: Float32[np.ndarray, "n width"], lengths: Int64[np.ndarray, " n"]
) -> list[np.ndarray]:
    """Return the first values of each row, as many as its length."""
    return [row[:length] for row, length in zip(values, lengths, strict=True)]

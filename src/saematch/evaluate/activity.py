"""Activity of single features on texts, computed from all of their activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from scipy.sparse import csc_array, csr_array, get_index_dtype

from saematch.core.pairs import SaeKey
from saematch.evaluate.effects import NONE
from saematch.sae.codes import codes_of
from saematch.sae.recorders import Recording
from saematch.texts.readers import Reader
from saematch.texts.token_texts import token_text

N_BINS = 20
"""Number of bins of a histogram of activations."""
TOKENS_NAMED = 8
"""Largest number of tokens in a description."""
BLOCK = 1024
"""Number of features that are computed at a time."""


@dataclass(frozen=True)
class ReadTexts:
    """The texts of a language model as one sequence of tokens, in the order of ``Reader.texts``.

    A place is the position of a token in this sequence.
    """

    words: Sequence[str]
    """Text of each different token."""
    word: Int64[np.ndarray, " n_places"]
    """Word at each place."""
    starts: Int64[np.ndarray, " n_texts_plus_1"]
    """Place of the first token of each text; the last number is that of all places."""
    counted: Int64[np.ndarray, " n_places"]
    """Number of each token among those that count; ``NONE`` for the others."""
    places: Int64[np.ndarray, " n_tokens"]
    """Place of each token that counts."""
    text: Int64[np.ndarray, " n_tokens"]
    """Text of each token that counts."""
    datasets: Mapping[str, int]
    """Number of texts of each text set."""

    @classmethod
    def of(cls, reader: Reader) -> ReadTexts:
        """Return the texts that a language model reads."""
        batches = [batch for of_set in reader.tokens.values() for batch in of_set]
        texts = [ids.numpy() for ids in reader.texts]
        ids, word = np.unique(np.concatenate(texts), return_inverse=True)
        counts = np.concatenate(
            [
                of_text[:length]
                for batch in batches
                for of_text, length in zip(
                    batch.counts.numpy(), batch.lengths.tolist(), strict=True
                )
            ]
        )
        starts = np.cumsum([0, *map(len, texts)])
        places = np.flatnonzero(counts)
        counted = np.full(len(counts), NONE)
        counted[places] = np.arange(len(places))
        return cls(
            [token_text(reader.lm.tokenizer, token) for token in ids.tolist()],
            word, starts, counted, places, np.searchsorted(starts, places, side="right") - 1,
            {name: sum(len(b.ids) for b in of_set) for name, of_set in reader.tokens.items()},
        )  # fmt: skip

    @property
    def dataset(self) -> list[str]:
        """Text set of each text."""
        return [name for name, n_texts in self.datasets.items() for _ in range(n_texts)]

    def tokens_of_sets(self) -> dict[str, slice]:
        """Return the tokens that count of each text set."""
        ends = self.starts[np.cumsum([0, *self.datasets.values()])]
        tokens = np.searchsorted(self.places, ends).tolist()
        return {
            name: slice(*tokens[number : number + 2]) for number, name in enumerate(self.datasets)
        }


def read_codes(recording: Recording, key: SaeKey, n_features: int) -> csr_array:
    """Return the activations of an SAE, ``[n_tokens, n_features]`` in float32.

    A stored entry takes 8 bytes; reading takes 16.
    """
    counts, features, values = [], [], []
    for batch in codes_of(recording, key, n_features):
        counts.append(batch.counts().numpy())
        features.append(batch.features.int().numpy())
        values.append(batch.values.numpy())
    n_active = np.concatenate(counts)
    starts = np.concatenate([[0], np.cumsum(n_active)])
    starts = starts.astype(get_index_dtype(maxval=starts[-1]))
    entries = np.concatenate(values), np.concatenate(features), starts
    return csr_array(entries, shape=(len(n_active), n_features))


def activity_of(codes: csr_array, by_feature: csc_array, texts: ReadTexts) -> pd.DataFrame:
    """Return a row for each feature of an SAE: its activity on the texts.

    ``by_feature`` has the same activations as ``codes``. Columns: see ``RunData.features``. A
    feature that is never active has no mean (NaN) and no tokens (None).
    """
    n_tokens, n_features = codes.shape
    columns: dict[str, object] = {"feature": np.arange(n_features)}
    columns["n_active"] = n_active = np.diff(by_feature.indptr).astype(np.int64)
    columns["density"] = n_active / n_tokens
    for name, tokens in texts.tokens_of_sets().items():
        entries = codes.indices[codes.indptr[tokens.start] : codes.indptr[tokens.stop]]
        n_of_set = max(tokens.stop - tokens.start, 1)
        columns[f"density_{name}"] = np.bincount(entries, minlength=n_features) / n_of_set
    live = n_active > 0
    mean, largest = np.full(n_features, np.nan), np.zeros(n_features, np.float32)
    if live.any():
        starts = by_feature.indptr[:-1][live]
        sums = np.add.reduceat(by_feature.data, starts, dtype=np.float64)
        mean[live] = sums / n_active[live]
        largest[live] = np.maximum.reduceat(by_feature.data, starts)
    columns |= {"mean_activation": mean, "max_activation": largest}
    named: list[str | None] = []
    histograms: list[np.ndarray] = []
    for start in range(0, n_features, BLOCK):
        chosen = by_feature[:, start : start + BLOCK]
        named += _named_tokens(chosen, texts)
        histograms += list(_histograms(chosen, largest[start : start + BLOCK]))
    return pd.DataFrame({**columns, "top_tokens": named, "histogram": histograms})


def features_of(chosen: csc_array) -> np.ndarray:
    """Return the feature of each entry, in the order in which they are stored."""
    return np.repeat(np.arange(chosen.shape[1]), np.diff(chosen.indptr))


def _histograms(
    chosen: csc_array, largest: Float32[np.ndarray, " n_features"]
) -> Int64[np.ndarray, "n_features n_bins"]:
    """Return the number of activations in bins of equal width from 0 to the largest activation.

    A bin includes its lower end, and the last bin both ends.
    """
    feature = features_of(chosen)
    bins = (chosen.data.astype(np.float64) * N_BINS / largest[feature]).astype(np.int64)
    keys = feature * N_BINS + np.clip(bins, 0, N_BINS - 1)
    return np.bincount(keys, minlength=chosen.shape[1] * N_BINS).reshape(-1, N_BINS)


def _named_tokens(chosen: csc_array, texts: ReadTexts) -> Iterator[str | None]:
    """Yield the tokens with the largest shares of each feature's summed activation.

    Tokens that differ only in the spaces around them count as one. If shares are equal, the token
    that is first in alphabetical order comes first.
    """
    shown, number = np.unique(
        [word.strip() or repr(word)[1:-1] for word in texts.words], return_inverse=True
    )
    word = number[texts.word[texts.places[chosen.indices]]]
    entries = chosen.data.astype(np.float64), (features_of(chosen), word)
    mass = csr_array(entries, shape=(chosen.shape[1], len(shown)))
    rows = np.repeat(np.arange(len(mass.indptr) - 1), np.diff(mass.indptr))
    order = np.lexsort((mass.indices, -mass.data, rows))
    share = mass.data / mass.sum(axis=1)[rows]
    for start, end in zip(mass.indptr, mass.indptr[1:], strict=False):
        best = order[start : min(end, start + TOKENS_NAMED)]
        names = (f'"{shown[mass.indices[entry]]}" ({share[entry]:.0%})' for entry in best)
        yield ", ".join(names) or None

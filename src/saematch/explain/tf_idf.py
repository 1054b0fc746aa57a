"""TF-IDF vectors of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scipy.sparse import csr_array

from saematch.core.specs import spec
from saematch.explain.words import words


@spec("embedding")
class TfIdf:
    """Spec of vectors that need neither a model nor a network: one coordinate for each word.

    A word of a text has the value ``1 + ln((1 + n) / (1 + n_with))``, where ``n_with`` of the
    ``n`` texts have the word (``TfidfVectorizer`` of scikit-learn); vectors then get unit length.
    ``words`` splits the texts: words that any explanation may have are left out, and a token in
    quotes is one word. A word counts once in a text.
    """

    def check(self, replies: Path) -> None:
        """Accept everything: nothing can fail."""

    def embed(self, texts: Sequence[str], replies: Path) -> csr_array:
        """Return a unit vector for each text, 0 for a text without words; counts ``texts``."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(map(words, texts)):
            return csr_array((len(texts), 1))
        return csr_array(TfidfVectorizer(analyzer=words).fit_transform(texts))

"""The cosine of embeddings of explanations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.specs import AtLeast1, spec
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.feature_texts import FeatureTexts
from saematch.sae.suites import SaeFacts

Vectors: TypeAlias = np.ndarray | csr_array
"""Unit vectors of texts, ``[n_texts, size]``, dense or sparse."""

SIMILARITIES_AT_ONCE = 1 << 23
"""Number of similarities of a block of source features in memory."""


@runtime_checkable
class Embedding(Protocol):
    """Spec of vectors of texts; the likeness of two texts is their cosine."""

    def check(self, replies: Path) -> None:
        """Raise ``InputError``, before any work, if texts cannot be embedded."""
        ...

    def embed(self, texts: Sequence[str], replies: Path) -> Vectors:
        """Return a unit vector for each text, or 0; ``replies`` is the file of stored vectors."""
        ...


@spec("objective")
class ExplanationCosine:
    """The cosine of embeddings of two features' explanations, without weights and activations.

    The ``n_candidates`` most similar target features of a source feature are its candidates. A
    feature without an explanation has no candidates, so it stays unmatched. If a feature has
    several explanations, the first is used. The SAEs may differ in layer, width, ``d_model`` and
    language model. The cost is one product of the vectors, which are sparse for TF-IDF.

    The score is only as good as the explanations. It cannot distinguish features with the same
    explanation, and two explainers word the same meaning differently (table ``likeness``). The
    texts of both SAEs are embedded together, so TF-IDF counts words in both.
    """

    embedding: Embedding
    n_candidates: AtLeast1 = 256

    def check(self, replies: Path) -> None:
        """Raise ``InputError`` if texts cannot be embedded."""
        self.embedding.check(replies)

    def candidates_of_texts(
        self, source: FeatureTexts, target: FeatureTexts, replies: Path
    ) -> Candidates:
        """Return the cosines of the best candidates of each source feature."""
        A, B = embed_both(self.embedding, source, target, replies)
        blocks = list(_best(A, B, self.n_candidates))
        rows, columns, scores = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return Candidates(
            source.features[rows], target.features[columns], scores,
            source.n_features, target.n_features,
        )  # fmt: skip

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Return None: explanations of any two SAEs can be compared."""
        return None


def embed_both(
    embedding: Embedding, source: FeatureTexts, target: FeatureTexts, replies: Path
) -> tuple[Vectors, Vectors]:
    """Return the vectors of the explanations of two SAEs."""
    n = len(source.texts)
    if not n or not target.texts:
        return csr_array((n, 1)), csr_array((len(target.texts), 1))
    vectors = embedding.embed([*source.texts, *target.texts], replies)
    return vectors[:n], vectors[n:]


class _Entries(NamedTuple):
    rows: Int64[Tensor, " n"]
    columns: Int64[Tensor, " n"]
    scores: Float64[Tensor, " n"]


def _best(A: Vectors, B: Vectors, most: int) -> Iterator[_Entries]:
    """Yield, for blocks of rows of ``A``, the ``most`` largest cosines of each row, without 0.

    A block of a sparse product becomes dense, since ``topk`` is faster than a sort of its entries.
    """
    (n, _), (m, _) = A.shape, B.shape
    transposed = B.T if isinstance(B, np.ndarray) else B.T.tocsr()
    size = max(1, SIMILARITIES_AT_ONCE // max(m, 1))
    for start in range(0, max(n, 1), size):
        product = A[start : start + size] @ transposed
        block = product if isinstance(product, np.ndarray) else product.toarray()
        values, columns = torch.from_numpy(block).topk(min(most, m), dim=1)
        columns, order = columns.sort(dim=1)
        values = values.gather(1, order).double()
        rows, places = torch.nonzero(values, as_tuple=True)
        yield _Entries(rows + start, columns[rows, places], values[rows, places])

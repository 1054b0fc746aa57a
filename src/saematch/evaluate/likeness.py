"""The evaluation ``likeness``: how alike the explanations of matched features are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64
from scipy.sparse import csr_array

from saematch.core.columns import Column
from saematch.core.match import Match
from saematch.core.specs import Seed, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.matching.objectives.explanation_cosine import Embedding, Vectors, embed_both
from saematch.matching.objectives.feature_texts import FeatureTexts
from saematch.sae.recorders import Recording

LIKENESS = Column(
    "likeness", "likeness of explanations", "higher", least=-1.0, greatest=1.0,
    meaning="mean cosine between the embeddings of two matched features' explanations",
)  # fmt: skip
LIKENESS_RANDOM = Column(
    "likeness_random", "likeness of explanations, random pairs", least=-1.0, greatest=1.0,
    meaning="the same for the source features of these entries with random target features, of "
    "the source's explainer or of other explainers as in the match",
)  # fmt: skip
EXPLAINERS = {"same": True, "different": False}
"""Whether one explainer wrote the explanations of both features, by value of ``explainers``."""

ENTRIES_AT_ONCE = 1 << 13
"""Number of entries whose vectors are in memory at a time."""


@spec("evaluations.likeness")
class Likeness(Evaluation):
    """Spec of the evaluation ``likeness``, for matches of every arm.

    It measures every entry of a match whose two features are explained, apart for entries that one
    explainer explained and those that two explained: two explainers word the same meaning
    differently. Weights are not used. If a run matches by explanations from its own texts, these
    are its calibration texts, and this evaluation reads explanations from the other texts.
    """

    columns: ClassVar[tuple[Column, ...]] = (LIKENESS, LIKENESS_RANDOM)
    explains: ClassVar[bool] = True

    embedding: Embedding
    """Vectors of explanations: ``TfIdf`` or ``EmbeddingEndpoint``."""
    seed: Seed = 0
    """Seed of the random pairs."""

    def check_server(self, replies: Path) -> None:
        """Raise ``InputError`` if texts cannot be embedded."""
        self.embedding.check(replies)

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``likeness``: a row for each pair, arm and kind of explainers with entries."""
        assert subject.explained is not None, "it sets explains"
        rows: list[Row] = []
        for pair in subject.matches.pairs:
            texts = _Texts(*(subject.explained.of(key) for key in pair))
            vectors = embed_both(self.embedding, *texts, subject.explained.replies)
            for arm, match in subject.matches.of(pair).items():
                for row in likeness_rows(texts, vectors, match, self.seed):
                    rows.append({**pair.columns(), "arm": arm, **row})
        return Tables.of({"likeness": rows})


class _Texts(NamedTuple):
    source: FeatureTexts
    target: FeatureTexts


class _Entries(NamedTuple):
    """Pairs of explained features, by their places among the texts of each side."""

    rows: Int64[np.ndarray, " n"]
    columns: Int64[np.ndarray, " n"]

    def only(self, chosen: Bool[np.ndarray, " n"]) -> _Entries:
        return _Entries(self.rows[chosen], self.columns[chosen])


def likeness_rows(
    texts: tuple[FeatureTexts, FeatureTexts],
    vectors: tuple[Vectors, Vectors],
    match: Match,
    seed: int,
) -> Iterator[Row]:
    """Yield the rows of one match, without those of no entry; ``vectors`` are those of ``texts``.

    Each source feature of an entry also gets a random target feature. If one explainer explained
    the entry, the same explainer explained this target; else another one did.
    """
    explainers = [np.array(of_side.explainers, dtype=str) for of_side in texts]
    entries = _explained(match, *texts)
    same = explainers[0][entries.rows] == explainers[1][entries.columns]
    generator = np.random.default_rng(seed)
    for name, is_same in EXPLAINERS.items():
        chosen = entries.only(same == is_same)
        if not len(chosen.rows):
            continue
        random = np.empty_like(chosen.columns)
        for explainer in np.unique(explainers[0][chosen.rows]):
            pool = np.flatnonzero((explainers[1] == explainer) == is_same)
            of_explainer = explainers[0][chosen.rows] == explainer
            random[of_explainer] = generator.choice(pool, of_explainer.sum())
        yield {
            "explainers": name,
            LIKENESS.name: _mean_cosine(*vectors, chosen),
            LIKENESS_RANDOM.name: _mean_cosine(*vectors, chosen._replace(columns=random)),
            "n_entries": len(chosen.rows),
        }


def _explained(match: Match, source: FeatureTexts, target: FeatureTexts) -> _Entries:
    """Return the entries of a match whose two features are explained."""
    places = []
    for index, texts in ((match.rows, source), (match.columns, target)):
        place = np.full(texts.n_features, -1)
        place[texts.features.numpy()] = np.arange(len(texts.texts))
        places.append(place[index.numpy()])
    rows, columns = places
    return _Entries(rows, columns).only((rows >= 0) & (columns >= 0))


def _mean_cosine(A: Vectors, B: Vectors, entries: _Entries) -> float:
    total = 0.0
    for start in range(0, len(entries.rows), ENTRIES_AT_ONCE):
        part = slice(start, start + ENTRIES_AT_ONCE)
        a, b = A[entries.rows[part]], B[entries.columns[part]]
        product = a.multiply(b) if isinstance(a, csr_array) else a * b
        total += float(product.sum(dtype=np.float64))
    return total / len(entries.rows)

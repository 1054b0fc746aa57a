"""The evaluation ``features``: squared errors of single features, and examples of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import numpy as np
import torch

from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.specs import spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.evaluation import Evaluation, PairFacts, Subject
from saematch.evaluate.weights import PARTS, FoldedPair, feature_mse, squared_errors
from saematch.matching.matches import MatchSet
from saematch.sae.recorders import Recording
from saematch.sae.suites import Saes

T = TypeVar("T")

N_BINS = 60
N_EXAMPLES = 10
"""Number of examples of the smallest errors, and of the largest errors."""


@spec("evaluations.features")
class Features(Evaluation):
    """Spec of the evaluation ``features``: ``feature_mse_histogram`` and ``features``."""

    one_partner: ClassVar[str] = "gives each feature one error"

    def refusal(self, facts: PairFacts) -> str | None:
        """Refuse vectors that cannot be subtracted."""
        if facts.source.d_model != facts.target.d_model:
            return "vectors of different d_model have no squared error"
        return None

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return the distribution of errors, and the pairs with the smallest and largest errors."""
        return Tables.of(
            {
                "feature_mse_histogram": histogram_rows(subject.saes, subject.matches),
                "features": example_rows(subject.saes, subject.matches),
            }
        )


def histogram_rows(saes: Saes, matches: MatchSet) -> list[Row]:
    """Return the rows of ``feature_mse_histogram``: numbers of pairs by decoder error (figure 5).

    All arms of a pair share the edges, which are evenly spaced from the smallest to the largest
    error of any arm.
    """
    rows: list[Row] = []
    for pair in matches.pairs:
        errors = _by_arm(saes, matches, pair, feature_mse)
        edges = np.histogram_bin_edges(torch.cat(list(errors.values())).numpy(), N_BINS)
        for arm, of_arm in errors.items():
            counts = np.histogram(of_arm.numpy(), edges)[0]
            for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
                ends: Row = {"mse_low": float(low), "mse_high": float(high), "n_pairs": int(n)}
                rows.append({**pair.columns(), "arm": arm, **ends})
    return rows


def example_rows(saes: Saes, matches: MatchSet) -> list[Row]:
    """Return the rows of ``features``: pairs with the smallest and largest decoder errors."""
    rows: list[Row] = []
    for pair in matches.pairs:
        for arm, errors in _by_arm(saes, matches, pair, squared_errors).items():
            match = matches.by_arm[arm][pair]
            order = errors["W_dec"].argsort(stable=True).tolist()
            ends = order[:N_EXAMPLES] + order[N_EXAMPLES:][-N_EXAMPLES:]
            for entry in ends:
                rows.append(
                    {
                        **pair.columns(),
                        "arm": arm,
                        "rank": order.index(entry),
                        "source_feature": int(match.rows[entry]),
                        "target_feature": int(match.columns[entry]),
                        **{f"mse_{part}": errors[part][entry].item() for part in PARTS},
                    }
                )
    return rows


def _by_arm(
    saes: Saes, matches: MatchSet, pair: Pair, metric: Callable[[FoldedPair, Match], T]
) -> dict[str, T]:
    """Return the metric of each arm's match; the folded SAEs are freed after the call."""
    folded = FoldedPair(saes[pair.source], saes[pair.target])
    return {arm: metric(folded, match) for arm, match in matches.of(pair).items()}

"""Differences between two ways of matching or of filling in a layer, paired by text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from saematch.core.pairs import NO_ARM, Pair
from saematch.core.tables import Row
from saematch.evaluate.intervals import Replicates, Values
from saematch.evaluate.means import SPLICE_METRICS
from saematch.evaluate.metrics import CoActivation
from saematch.evaluate.plan import Cell

SCORES = ("matching_score", "matching_score_macro", "jaccard")
"""Scores that arms are contrasted in."""


def strategy_contrasts(
    cells: Sequence[Cell],
    metrics: Sequence[Mapping[str, Values]],
    dataset: str,
    replicates: Replicates,
) -> Iterator[Row]:
    """Yield the rows of ``contrasts`` for the cells of one pair and data set.

    Each row has the metrics of one cell minus those of another cell. The two differ in the arm
    alone or in the strategy alone, or the second one is a strategy without a match.
    """
    for (cell, values), (other, others) in combinations(zip(cells, metrics, strict=True), 2):
        if not _comparable(cell, other):
            continue
        row: Row = {**cell.splice.pair.columns(), "dataset": dataset}
        row |= {"arm": cell.arm, "strategy": cell.splice.strategy}
        row |= {"against_arm": other.arm, "against_strategy": other.splice.strategy}
        row |= {"quantile": cell.splice.quantile}
        for metric in SPLICE_METRICS:
            row |= replicates.row(f"{metric}_difference", values[metric] - others[metric])
        yield row


def _comparable(cell: Cell, other: Cell) -> bool:
    if cell.arm == NO_ARM or other.arm == NO_ARM:
        return cell.arm != other.arm
    same_strategy = cell.splice.strategy == other.splice.strategy
    same_quantile = cell.splice.quantile == other.splice.quantile
    return same_quantile and (cell.arm == other.arm) != same_strategy


def arm_contrasts(
    pair: Pair, scores: Mapping[str, Mapping[str, CoActivation]], replicates: Replicates
) -> Iterator[Row]:
    """Yield the rows of ``activation_contrasts`` for one pair: each arm minus each later arm.

    ``scores`` has the scores by arm and data set.
    """
    for arm, other in combinations(scores, 2):
        for dataset, score in scores[arm].items():
            row: Row = {**pair.columns(), "dataset": dataset, "arm": arm, "against_arm": other}
            for metric in SCORES:
                difference = getattr(score, metric) - getattr(scores[other][dataset], metric)
                row |= replicates.row(f"{metric}_difference", difference)
            yield row

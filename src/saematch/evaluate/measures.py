"""Metrics with their intervals, pair by pair, and their means over the pairs of a run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from saematch.core.columns import Column
from saematch.core.pairs import POOLED, Pair
from saematch.core.tables import Row
from saematch.evaluate.intervals import FEW_TEXTS, Intervals, Replicates, Values, Weights
from saematch.evaluate.means import COMPARED, MeanKey, mean_row
from saematch.texts.tokens import TokenBatch

log = logging.getLogger(__name__)


class Cell(NamedTuple):
    """Key of a measured row."""

    pair: Pair
    arm: str
    dataset: str
    """Name of a text set, or ``all`` for the sets together."""
    strategy: str | None = None
    quantile: float | None = None

    def columns(self) -> Row:
        """Return the key columns of the row; strategy and quantile only if there is a strategy."""
        row: Row = {**self.pair.columns(), "arm": self.arm, "dataset": self.dataset}
        if self.strategy is not None:
            row |= {"strategy": self.strategy, "quantile": self.quantile}
        return row


class MeasureKey(NamedTuple):
    """Key of a metric whose replicates are kept."""

    cell: Cell
    metric: str
    k: int | None = None
    """Number of best partners that were tested together; None for a metric of the whole match."""
    stratum: int | None = None
    """Stratum of activity of the source features, from 1; None for all features."""


@dataclass(frozen=True)
class Measures:
    """The text sets of a run, and the metrics measured on them.

    All metrics of a run share their replicates, so that differences are paired.
    """

    replicates: Replicates
    weights: Mapping[str, Weights]
    """Weights by text set, as in ``Replicates.weights``."""
    kept: dict[MeasureKey, tuple[Column, Values]] = field(default_factory=dict)
    """Metrics of pairs and arms, with their replicates."""

    @classmethod
    def of(cls, tokens: Mapping[str, Iterable[TokenBatch]], intervals: Intervals) -> Measures:
        """Return the measures of text sets; logs a warning for sets with few texts."""
        sizes = {name: sum(len(b.ids) for b in batches) for name, batches in tokens.items()}
        small = [f"{name} has {n}" for name, n in sizes.items() if n < FEW_TEXTS]
        if small and intervals.n_replicates:
            log.warning(
                "intervals from fewer than %d texts are often too narrow: %s; use more texts",
                FEW_TEXTS,
                ", ".join(small),
            )
        replicates = intervals.replicates(list(sizes.values()))
        return cls(replicates, dict(zip(sizes, replicates.weights, strict=True)))

    @property
    def datasets(self) -> list[str]:
        """Names of the text sets."""
        return list(self.weights)

    def weights_of(self, dataset: str) -> Weights:
        """Return the weights of a text set, or of all sets for ``all``."""
        return self.replicates.pooled() if dataset == POOLED else self.weights[dataset]

    def row(self, cell: Cell, values: Mapping[Column, Values]) -> Row:
        """Return a row with metrics and the ends of their intervals.

        Metrics that are logged from ``matches`` or ``strategies`` are included in the means.
        """
        row = cell.columns()
        for column, of_column in values.items():
            row |= self.replicates.row(column, of_column)
            if COMPARED & set(column.logged):
                self.kept[MeasureKey(cell, column.name)] = column, of_column
        return row

    def mean_rows(self) -> list[Row]:
        """Return the rows of ``means`` for all measured metrics.

        If a metric was not measured over all texts together, its value for ``all`` is the mean of
        the values of the text sets.
        """
        grouped: dict[MeanKey, list[Values]] = defaultdict(list)
        columns: dict[str, Column] = {}
        for (cell, metric, k, _), (column, values) in self.kept.items():
            if k is None:
                pair, arm, dataset, strategy, quantile = cell
                key = MeanKey(pair.suites, arm, dataset, strategy, quantile, metric)
                grouped[key].append(values)
                columns[metric] = column
        means = {key: torch.stack(values).mean(dim=0) for key, values in grouped.items()}
        n_pairs = {key: len(values) for key, values in grouped.items()}
        of_sets: dict[MeanKey, list[MeanKey]] = defaultdict(list)
        for key in means:
            over_all = key._replace(dataset=POOLED)
            if over_all not in means:
                of_sets[over_all].append(key)
        for over_all, keys in of_sets.items():
            means[over_all] = torch.stack([means[key] for key in keys]).mean(dim=0)
            n_pairs[over_all] = n_pairs[keys[0]]
        return [
            mean_row(key, self.replicates.interval(columns[key.metric], values), n_pairs[key])
            for key, values in means.items()
        ]

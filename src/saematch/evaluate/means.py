"""What runs are compared by: the mean of every metric over the pairs of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

import torch

from saematch.core.pairs import DEFAULT, NO_ARM, POOLED, Pair, suites_of
from saematch.core.tables import Row, Tables
from saematch.evaluate.intervals import Replicates, Values

SPLICE_METRICS = ("explained_variance", "delta_loss")
SCORE_METRICS = (
    "matching_score",
    "matching_score_entries",
    "matching_score_live",
    "matching_score_matched",
    "matching_score_macro",
    "jaccard",
)
CERTIFICATE_METRICS = ("value", "bound", "chance", "gap", "gap_over_chance", "n_90", "certain")
"""Attributes of ``Certificate``."""
WEIGHT_METRICS = (
    "mse_W_enc",
    "mse_b_enc",
    "mse_W_dec",
    "recall",
    "recall_live",
    "agreement",
    "decoder_norm_change",
    *CERTIFICATE_METRICS,
)
"""Metrics of matches without an interval; all but ``recall_live`` need weights alone."""
JUDGE_METRICS = ("judge_score", "same_share")


@dataclass
class Means:
    """Metrics of each pair with their replicates, for the intervals of means over pairs."""

    replicates: Replicates
    _values: dict[tuple, list[Values]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self,
        pair: Pair,
        arm: str,
        dataset: str,
        strategy: str | None,
        quantile: float | None,
        metric: str,
        values: Values,
    ) -> None:
        """Take a metric of one pair: its value, then its replicates."""
        self._values[pair.suites, arm, dataset, strategy, quantile, metric].append(values)

    def rows(self) -> list[Row]:
        """Return a row for each metric and what it is of.

        Under ``POOLED`` stands what is over all data sets: of explained variance and change in loss
        the mean of the data sets' values.
        """
        means = {about: torch.stack(each).mean(dim=0) for about, each in self._values.items()}
        pairs = {about: len(each) for about, each in self._values.items()}
        of_sets: dict[tuple, list[tuple]] = defaultdict(list)
        for suites, arm, dataset, *cell, metric in list(means):
            if metric in SPLICE_METRICS:
                over_all = (suites, arm, POOLED, *cell, metric)
                of_sets[over_all].append((suites, arm, dataset, *cell, metric))
        for over_all, each in of_sets.items():
            means[over_all] = torch.stack([means[about] for about in each]).mean(dim=0)
            pairs[over_all] = pairs[each[0]]
        rows = []
        for about, values in means.items():
            interval = self.replicates.interval(about[-1], values)
            rows.append(_row(*about, *interval, pairs[about]))
        return rows


def mean_rows(tables: Tables, measured: Means | None) -> list[Row]:
    """Return the table ``means``: of weights, of what was measured on texts, and of a judge."""
    rows = list(_of_weights(tables.rows("matches")))
    if measured is not None:
        rows += measured.rows()
    n_pairs: dict[tuple, int] = defaultdict(int)
    scores = tables.rows("judge_scores")
    for row in scores:
        n_pairs[suites_of(row), row["role"], row["arm"]] += row["target_layer"] is not None
    for row in scores:
        if (
            row["target_layer"] is None
        ):  # over all pairs; a control stands in the place of a strategy
            control = None if row["role"] == "pair" else row["role"]
            about = (suites_of(row), row["arm"], None, control, None)
            n = n_pairs[suites_of(row), row["role"], row["arm"]]
            for metric in JUDGE_METRICS:
                ends = (row[f"{metric}_low"], row[f"{metric}_high"])
                rows.append(_row(*about, metric, row[metric], *ends, n))
    return rows


def _of_weights(matches: list[Row]) -> list[Row]:
    values: dict[tuple, list[float]] = defaultdict(list)
    for row in matches:
        for metric in WEIGHT_METRICS:
            value = row.get(metric)  # nobody knows the recall of a match without a truth
            if value is not None:
                values[suites_of(row), row["arm"], None, None, None, metric].append(float(value))
    return [_row(*about, fmean(each), None, None, len(each)) for about, each in values.items()]


def _row(*values: str | int | float | None) -> Row:
    names = ("suites", "arm", "dataset", "strategy", "quantile", "metric",
             "value", "low", "high", "n_pairs")  # fmt: skip
    return dict(zip(names, values, strict=True))


def headline_metrics(tables: Tables) -> dict[str, float]:
    """Return the metrics by which sweeps compare runs, as the table ``means`` has them.

    ``explained_variance/<arm>`` and ``delta_loss/<arm>``: the mean over pairs and data sets, of
    the first strategy that the arm is decoded by; of its partial match, if the arm has exactly one.
    ``judge_score/<arm>``, ``same_share/<arm>`` and ``judge_control/<role>``: over all judgements.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    for row in tables.rows("means"):
        told = row["metric"] in SPLICE_METRICS and row["dataset"] == POOLED
        if told and row["arm"] != NO_ARM and row["value"] is not None:
            suffix = "" if row["suites"] == DEFAULT else f"/{row['suites']}"
            found[f"{row['metric']}/{row['arm']}{suffix}"].append(row)
    metrics = {}
    for name, rows in found.items():
        of_first = [row for row in rows if row["strategy"] == rows[0]["strategy"]]
        partial = [row for row in of_first if row["quantile"] is not None]
        chosen = partial[0] if len(partial) == 1 else of_first[0]
        assert chosen["value"] is not None
        metrics[name] = float(chosen["value"])
    return metrics | dict(_judged(tables))


def _judged(tables: Tables) -> Iterator[tuple[str, float]]:
    """Yield a judge's scores over all judgements, which stand in the place of means over pairs."""
    for row in tables.rows("means"):
        if row["metric"] in JUDGE_METRICS and row["value"] is not None:
            suffix = "" if row["suites"] == DEFAULT else f"/{row['suites']}"
            if row["strategy"] is None:
                yield f"{row['metric']}/{row['arm']}{suffix}", float(row["value"])
            elif row["metric"] == "judge_score":
                yield f"judge_control/{row['strategy']}{suffix}", float(row["value"])

"""Means of every metric over the pairs of a run, by which runs are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from statistics import fmean
from typing import NamedTuple

from saematch.core.pairs import DEFAULT, NO_ARM, POOLED, suites_of
from saematch.core.tables import Row, Tables
from saematch.evaluate.intervals import Interval

COMPARED = {"matches", "strategies"}
"""Tables whose logged metrics have a mean over pairs, by which runs are compared."""


class MeanKey(NamedTuple):
    """Key of a mean over pairs."""

    suites: str
    arm: str
    dataset: str | None
    strategy: str | None
    quantile: float | None
    metric: str


def mean_row(key: MeanKey, interval: Interval, n_pairs: int) -> Row:
    """Return a row of the table ``means``."""
    return {**key._asdict(), **interval._asdict(), "n_pairs": n_pairs}


def weight_means(tables: Tables, measured: Collection[str] = ()) -> list[Row]:
    """Return the rows of ``means`` for the logged metrics of ``matches`` not in ``measured``.

    They have no interval.
    """
    metrics = [
        column.name
        for column in tables.columns.values()
        if "matches" in column.logged and column.name not in measured
    ]
    values: dict[MeanKey, list[float]] = defaultdict(list)
    for row in tables.rows("matches"):
        for metric in metrics:
            value = row.get(metric)  # the recall of a match without a known truth is missing
            if value is not None:
                key = MeanKey(suites_of(row), str(row["arm"]), None, None, None, metric)
                values[key].append(float(value))
    return [mean_row(key, Interval(fmean(of_key)), len(of_key)) for key, of_key in values.items()]


def headline_metrics(tables: Tables) -> dict[str, float]:
    """Return the metrics of skipped layers by which sweeps compare runs, from the table ``means``.

    These are ``explained_variance/<arm>`` and ``delta_loss/<arm>``: means over pairs and data sets
    for the first strategy of the arm, and for its partial match if the arm has exactly one.
    """
    rows_of_name: dict[str, list[Row]] = defaultdict(list)
    for row in tables.rows("means"):
        skipped = row["strategy"] is not None and row["dataset"] == POOLED
        if skipped and row["arm"] != NO_ARM and row["value"] is not None:
            suffix = "" if row["suites"] == DEFAULT else f"/{row['suites']}"
            rows_of_name[f"{row['metric']}/{row['arm']}{suffix}"].append(row)
    metrics = {}
    for name, rows in rows_of_name.items():
        of_first = [row for row in rows if row["strategy"] == rows[0]["strategy"]]
        partial = [row for row in of_first if row["quantile"] is not None]
        chosen = partial[0] if len(partial) == 1 else of_first[0]
        assert chosen["value"] is not None
        metrics[name] = float(chosen["value"])
    return metrics

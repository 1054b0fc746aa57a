"""Means of a judge's scores, by which runs are compared."""

from __future__ import annotations

from collections.abc import Iterator

from saematch.core.pairs import DEFAULT, SUITE_COLUMNS, suites_of
from saematch.core.tables import Row, Tables, rows_of
from saematch.evaluate.intervals import Interval
from saematch.evaluate.means import MeanKey, mean_row
from saematch.judge.scores import JUDGE_SCORE, SAME_SHARE

MEANS = (JUDGE_SCORE.name, SAME_SHARE.name)


def judge_means(tables: Tables) -> list[Row]:
    """Return the rows of ``means`` for the judge's scores over all pairs.

    A control is named in the column ``strategy``.
    """
    scores = tables.get("judge_scores")
    if scores is None or scores.empty:
        return []
    of_pairs = scores[scores["target_layer"].notna()]
    n_pairs = of_pairs.groupby([*SUITE_COLUMNS, "role", "arm"]).size().to_dict()
    means = []
    for row in rows_of(scores[scores["target_layer"].isna()]):  # over all pairs
        control = None if row["role"] == "pair" else str(row["role"])
        n = n_pairs.get(tuple(row[name] for name in (*SUITE_COLUMNS, "role", "arm")), 0)
        for metric in MEANS:
            key = MeanKey(suites_of(row), str(row["arm"]), None, control, None, metric)
            ends = (row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
            means.append(mean_row(key, Interval(*ends), int(n)))  # type: ignore[arg-type]
    return means


def judge_metrics(tables: Tables) -> dict[str, float]:
    """Return ``judge_score/<arm>``, ``same_share/<arm>`` and ``judge_control/<role>``."""
    return dict(_metrics(tables))


def _metrics(tables: Tables) -> Iterator[tuple[str, float]]:
    for row in tables.rows("means"):
        if row["metric"] in MEANS and row["value"] is not None:
            suffix = "" if row["suites"] == DEFAULT else f"/{row['suites']}"
            if row["strategy"] is None:
                yield f"{row['metric']}/{row['arm']}{suffix}", float(row["value"])
            elif row["metric"] == "judge_score":
                yield f"judge_control/{row['strategy']}{suffix}", float(row["value"])

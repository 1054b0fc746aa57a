"""A judge's scores among the means by which runs are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT, suites_of
from saematch.core.tables import Row, Tables
from saematch.evaluate.intervals import Interval
from saematch.evaluate.means import MeanKey, mean_row

COLUMNS = (
    Column("judge_score", "judge score", "higher", "", 1.0, 3.0, True, ("matches",),
           "mean of a judge's labels: 1 different, 2 maybe, 3 the same"),
    Column("same_share", "share of SAME", "higher", "", 0.0, 1.0, True, ("matches",),
           "share of judgements with the label SAME"),
    Column("kappa", "Cohen's kappa", "higher", least=-1.0, greatest=1.0,
           meaning="agreement of two judgements of the same pairs beyond chance"),
)  # fmt: skip
MEANS = ("judge_score", "same_share")


def judge_means(tables: Tables) -> list[Row]:
    """Return the rows of ``means`` for the judge's scores over all pairs.

    A control is named in the column ``strategy``.
    """
    n_pairs: dict[tuple, int] = defaultdict(int)
    scores = tables.rows("judge_scores")
    for row in scores:
        n_pairs[suites_of(row), row["role"], row["arm"]] += row["target_layer"] is not None
    means = []
    for row in (row for row in scores if row["target_layer"] is None):  # over all pairs
        control = None if row["role"] == "pair" else str(row["role"])
        n = n_pairs[suites_of(row), row["role"], row["arm"]]
        for metric in MEANS:
            key = MeanKey(suites_of(row), str(row["arm"]), None, control, None, metric)
            ends = (row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
            means.append(mean_row(key, Interval(*ends), n))  # type: ignore[arg-type]
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

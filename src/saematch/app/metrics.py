"""The command ``saematch metrics``: the definition of every metric."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saematch.core.columns import Column


def main(words: Sequence[str]) -> None:
    """Print the definitions of all metrics, or of those that a run has."""
    parser = argparse.ArgumentParser(
        prog="python -m saematch metrics",
        description="Print what each metric is: name, label, unit, whether higher or lower is "
        "better, range, interval and meaning.",
    )
    parser.add_argument(
        "run", nargs="?", type=Path,
        help="folder of a run, whose metrics include those of evaluations of other packages; "
        "without it, the metrics that saematch defines",
    )  # fmt: skip
    from saematch.report.metrics import print_metrics

    folder = parser.parse_args(words).run
    print_metrics(_own() if folder is None else _of_run(folder))


def _own() -> list[Column]:
    from saematch.evaluate.co_activation import CoActivation
    from saematch.evaluate.match_tables import MatchTables
    from saematch.evaluate.paths import Paths
    from saematch.evaluate.planted import Planted
    from saematch.evaluate.skipping import Skipping
    from saematch.judge.scores import COLUMNS as JUDGE
    from saematch.training.train_saes import COLUMNS as SAES

    evaluations = (MatchTables, CoActivation, Skipping, Paths, Planted)
    columns = [column for evaluation in evaluations for column in evaluation.columns]
    return list({column.name: column for column in (*columns, *JUDGE, *SAES)}.values())


def _of_run(folder: Path) -> list[Column]:
    from saematch.core.results import Results

    return list(Results.load(folder / "results.json").tables.columns.values())

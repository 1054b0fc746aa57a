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
    from saematch.report.metrics import own_columns, print_metrics

    folder = parser.parse_args(words).run
    print_metrics(_of_run(folder) if folder else own_columns().values())


def _of_run(folder: Path) -> list[Column]:
    from saematch.core.results import Results

    return list(Results.load(folder / "results.json").tables.columns.values())

"""The command ``saematch metrics``: the definition of every metric."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saematch.core.columns import Column
from saematch.core.files import replacing


def main(words: Sequence[str]) -> None:
    """Print the definitions of all metrics, or of those that a run has."""
    parser = argparse.ArgumentParser(
        prog="saematch metrics",
        description="Print the definition of each metric: name, label, unit, whether higher or "
        "lower is better, range, interval and meaning.",
    )
    parser.add_argument(
        "run", nargs="?", type=Path,
        help="folder of a run: print its metrics, those of your own evaluations included "
        "(default: all metrics that saematch defines)",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, help="write the table to this Markdown file instead")
    from saematch.report.metrics import markdown, own_columns, print_metrics

    arguments = parser.parse_args(words)
    folder = arguments.run
    columns = own_columns().values() if folder is None else _run_columns(folder)
    if arguments.page is None:
        print_metrics(columns)
    else:
        with replacing(arguments.page) as part:
            part.write_text(PAGE + markdown(columns), encoding="utf-8")


PAGE = """# Metrics

Each evaluation defines its metrics in its own file; `make metrics-page` writes this page from those
definitions. `saematch metrics RUN` prints the metrics of one run, those of your own evaluations
included. A metric with an interval has the columns `<name>_low` and `<name>_high`.

"""


def _run_columns(folder: Path) -> list[Column]:
    from saematch.core.results import Results, results_path

    return list(Results.load(results_path(folder)).tables.columns.values())

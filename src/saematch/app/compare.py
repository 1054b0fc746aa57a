"""``saematch compare``: many runs as one tidy table, and what a swept setting did."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.compare.comparison import Comparison, collect
from saematch.compare.plan import metrics_of, plan_panels, too_many_panels
from saematch.core.errors import InputError
from saematch.core.files import check_path, replacing
from saematch.core.safe_text import for_spreadsheets
from saematch.core.tables import frame_of

if TYPE_CHECKING:
    from pandas import DataFrame

NUMBERS = ("quantile", "value", "low", "high")
"""Columns that are numbers even where they are all empty."""


def main(arguments: Sequence[str]) -> None:
    """Run the command; ``InputError`` if nothing can be compared, or no figure be drawn."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    comparison = compare(
        options.folders,
        options.out,
        where=options.where,
        against=options.against,
        metrics=options.metrics,
        code=options.code,
    )
    from saematch.compare.terminal import print_comparison

    print_comparison(comparison, options.metrics)
    if options.wandb:
        from saematch.compare.mirror import mirror_comparison

        mirror_comparison(comparison, options.project, options.entity)
    if comparison.undrawn:
        raise InputError(comparison.undrawn)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch compare",
        description="Collect the results of many runs into one tidy table and show what a swept "
        "setting did. Runs are compared if they are finished and rest on the same: those made by "
        "other code or other versions of torch and transformers, or of SAEs, models or texts that "
        "were changed though the settings are equal, are left out, as are failed ones, and it is "
        "said why.",
        epilog="Writes comparison.parquet and comparison.csv (a row for each run and metric), "
        "runs.csv (a row for each run), figures/ and index.html. Settings of name, logging, cache "
        "and device are never compared. Examples: saematch compare outputs/widths; "
        "saematch compare outputs/match/a outputs/match/b --out ab; "
        "saematch compare outputs/widths --against sae.width --where objective=decoder",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER",
        help="folders of runs, of sweeps, or folders above them",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="where to write (default: FOLDER/comparison for one folder that is no run itself, "
        "else outputs/comparison)",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE",
        help="runs of this setting alone, as objective=decoder; may be given again: another key "
        "narrows the choice, another value of a key widens it; suites=NAME chooses a suite of SAEs",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="KEY",
        help="the swept setting on the x axis (default: the number with most values, else the "
        "setting with most values); the others make panels",
    )  # fmt: skip
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", dest="metrics",
        help="draw this metric; may be given again (default: the main ones that the runs have)",
    )  # fmt: skip
    parser.add_argument(
        "--code", metavar="HASH",
        help="compare the runs made by the code whose hash begins so (runs.csv has the hashes), "
        "instead of the code that made most runs",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", action="store_true",
        help="mirror tables and figures to Weights & Biases; without account or network offline, "
        "into the folder",
    )  # fmt: skip
    parser.add_argument("--project", default="saematch", help="of --wandb (default: saematch)")
    parser.add_argument("--entity", help="of --wandb (default: that of the account)")
    return parser


def compare(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    where: Sequence[str] = (),
    against: str | None = None,
    metrics: Sequence[str] = (),
    code: str | None = None,
) -> Comparison:
    """Compare the runs in or below the folders, and write tables, figures and page into ``out``.

    The options are those of the command. Raises ``InputError`` if nothing can be compared, for
    options that do not fit the runs; nothing is written then. Where figures would have too many
    panels there are none, and the comparison says so.
    """
    comparison = replace(collect(folders, where, code), out=out or _default_out(folders))
    chosen = metrics_of(comparison, metrics)
    plan = plan_panels(comparison, against)
    out = comparison.out
    check_path("--out", out)
    if (out / "results.json").exists():
        raise InputError(f"{out} is the folder of a run: choose another --out")
    from saematch.compare.figures import draw_comparison
    from saematch.compare.page import write_page

    if (out / "comparison.csv").exists():  # figures of an earlier comparison
        for path in [*(out / "figures").glob("*.png"), *(out / "figures").glob("*.svg")]:
            path.unlink()
    undrawn = too_many_panels(comparison, plan)
    figures = {} if undrawn else draw_comparison(comparison, chosen, plan, out / "figures")
    _write(comparison, out)
    comparison = replace(comparison, figures=figures, undrawn=undrawn)
    write_page(comparison, chosen, out / "index.html")
    return comparison


def _default_out(folders: Sequence[Path]) -> Path:
    if len(folders) > 1 or (folders[0] / "results.json").exists():
        return Path("outputs/comparison")
    return folders[0] / "comparison"


def _write(comparison: Comparison, out: Path) -> None:
    tidy = _typed(comparison.means)
    with replacing(out / "comparison.parquet") as part:
        tidy.to_parquet(part, index=False)
    with replacing(out / "comparison.csv") as part:
        for_spreadsheets(tidy).to_csv(part, index=False)
    with replacing(out / "runs.csv") as part:
        for_spreadsheets(_typed(frame_of(comparison.run_rows()))).to_csv(part, index=False)


def _typed(frame: DataFrame) -> DataFrame:
    """Return a table in which empty columns hold text, and columns of numbers hold numbers."""
    frame = frame.copy()
    for name in frame:
        if name in NUMBERS:
            frame[name] = frame[name].astype("float64")
        elif frame[name].isna().all():
            frame[name] = frame[name].astype("string")
    return frame

"""``saematch compare``: collect many runs in one tidy table and show the effect of a setting."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.core.errors import InputError
from saematch.core.files import check_path, replacing
from saematch.core.safe_text import for_spreadsheets
from saematch.core.tables import frame_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from saematch.compare.comparison import Comparison

NUMBERS = ("quantile", "value", "low", "high")
"""Columns of numbers, also if every cell is empty."""


def main(arguments: Sequence[str]) -> None:
    """Run the command. ``InputError`` if nothing can be compared or no figure can be drawn."""
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
        description="Collect the results of many runs in one table, and show the effect of a swept "
        "setting. Only finished runs are compared, and only runs with the same code, the "
        "same versions of torch and transformers, and unchanged SAEs, models and texts. The "
        "comparison lists every excluded run with the reason.",
        epilog="Writes comparison.parquet and comparison.csv (a row for each run and metric), "
        "runs.csv (a row for each run), by_layer.csv (metrics by layer), agreement.csv (share of "
        "equal entries of the runs' matches), figures/ and index.html. Settings of name, logging, "
        "cache and device are never compared. Examples: saematch compare outputs/widths; "
        "saematch compare outputs/match/a outputs/match/b --out ab; "
        "saematch compare outputs/widths --against sae.width --where objective=decoder",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER",
        help="folders of runs or sweeps, or folders that contain them",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="output folder (default: FOLDER/comparison for a single folder that is not a run, "
        "else outputs/comparison)",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE",
        help="only runs with this setting, such as objective=decoder; may be repeated: another "
        "key narrows the choice, another value of a key widens it; suites=NAME chooses a suite",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="KEY",
        help="the swept setting on the x axis (default: the numeric setting with the most values, "
        "else the setting with the most values); the other settings make panels",
    )  # fmt: skip
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", dest="metrics",
        help="draw this metric; may be repeated (default: the main metrics of the runs)",
    )  # fmt: skip
    parser.add_argument(
        "--code", metavar="HASH",
        help="compare the runs whose code's hash begins with this (runs.csv has the hashes), "
        "instead of the runs of the most frequent code",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", action="store_true",
        help="mirror tables and figures to Weights & Biases; without an account or a network, "
        "write them to the output folder",
    )  # fmt: skip
    parser.add_argument(
        "--project", default="saematch", help="project of --wandb (default: saematch)"
    )
    parser.add_argument("--entity", help="entity of --wandb (default: the account's)")
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
    """Compare the runs in or below the folders, and write tables, figures and page to ``out``.

    The options are those of the command. Raises ``InputError``, before writing anything, if nothing
    can be compared or the options do not fit the runs. If figures would have too many panels, none
    is drawn, and ``Comparison.undrawn`` has the reason.
    """
    from saematch.compare.comparison import collect
    from saematch.compare.plan import metrics_of, plan_panels, too_many_panels

    comparison = replace(collect(folders, where, code), out=out or _default_out(folders))
    chosen = metrics_of(comparison, metrics)
    plan = plan_panels(comparison, against)
    out = comparison.out
    check_path("--out", out)
    if (out / "results.json").exists():
        raise InputError(f"{out} is the folder of a run: choose another --out")
    from saematch.compare.figures import draw_comparison
    from saematch.compare.layer_figures import draw_by_layer
    from saematch.compare.page import write_page

    if (out / "comparison.csv").exists():  # figures of an earlier comparison
        for pattern in ("*.png", "*.svg", "*.pdf"):
            for path in (out / "figures").glob(pattern):
                path.unlink()
    undrawn = too_many_panels(comparison, plan)
    figures = {} if undrawn else draw_comparison(comparison, chosen, plan, out / "figures")
    figures |= draw_by_layer(comparison, chosen, out / "figures")
    _write(comparison, out)
    comparison = replace(comparison, figures=figures, undrawn=undrawn)
    write_page(comparison, chosen, out / "index.html")
    return comparison


def _default_out(folders: Sequence[Path]) -> Path:
    if len(folders) > 1 or (folders[0] / "results.json").exists():
        return Path("outputs/comparison")
    return folders[0] / "comparison"


def _write(comparison: Comparison, out: Path) -> None:
    from saematch.compare.comparison import layer_tables

    tidy = _typed(comparison.means)
    with replacing(out / "comparison.parquet") as part:
        tidy.to_parquet(part, index=False)
    with replacing(out / "comparison.csv") as part:
        for_spreadsheets(tidy).to_csv(part, index=False)
    tables = {"runs": frame_of(comparison.run_rows()), **layer_tables(comparison)}
    for name in ("by_layer", "agreement"):  # of an earlier comparison
        (out / f"{name}.csv").unlink(missing_ok=True)
    for name, frame in tables.items():
        with replacing(out / f"{name}.csv") as part:
            for_spreadsheets(_typed(frame)).to_csv(part, index=False)


def _typed(frame: DataFrame) -> DataFrame:
    """Return a copy in which empty columns have the type text, and ``NUMBERS`` are numbers."""
    frame = frame.copy()
    for name in frame:
        if name in NUMBERS:
            frame[name] = frame[name].astype("float64")
        elif frame[name].isna().all():
            frame[name] = frame[name].astype("string")
    return frame

"""Write the page of leaderboards of several runs: ``make leaderboard``.

python -m saematch.report.leaderboard_page PAGE RUN [RUN ...]
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from saematch.core.errors import InputError
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report.leaderboard import (
    OFF_RATE,
    USES,
    against_first,
    best_everywhere,
    boards,
    metrics_of,
    pair_difference,
    recommendation,
    winners,
)
from saematch.report.pages import write_template

STATED = ("independent", "4→5", "written_share", 5)
"""Family, layers, arm and number of partners of a difference that the page always states."""
PARTS = {
    "depth": "thirds of the layers, by the source layer, over pairs of neighbours",
    "distance": "layers from source to target",
    "stratum": "quarters of the source features, from rarely to often active",
}


class Kind(NamedTuple):
    """A class of objectives, of matchers or of whole-model matches, and its description."""

    name: str
    text: str


def write_page(page: Path, runs: Sequence[Path]) -> None:
    """Write a page in Markdown or HTML, by its suffix, from runs that are named by their folders.

    In Markdown, the winners and the tables of all arms go to ``leaderboards.md`` next to it. The
    figure of each run is copied to the folder ``<page>_figures``. Raises ``InputError`` for a
    folder without results of the evaluation ``leaderboard``.
    """
    results = {run.name: _results(run) for run in runs}
    tables = {family: result.tables for family, result in results.items()}
    headline = [dict(use.key) for use in USES if use.key["metric"] == OFF_RATE]
    values: dict[str, Any] = {
        "families": {family: _facts(result) for family, result in results.items()},
        "arms": _arms(tables),
        "objectives": list(_kinds(results.values(), "objective")),
        "matchers": list(_kinds(results.values(), "matcher", "synchronise")),
        "boards": list(boards(tables)),
        "winners": winners(tables, "all", metrics_of(tables)),
        "parts": {by: (text, winners(tables, by, headline)) for by, text in PARTS.items()},
        "uses": list(_uses(tables)),
        "statements": list(_statements(tables)),
        "figures": _figures(page, {run.name: run for run in runs}),
    }
    write_template(page, f"matchers{page.suffix}", **values)
    if page.suffix == ".md":
        write_template(page.with_name("leaderboards.md"), "leaderboards.md", **values)


def _results(run: Path) -> Results:
    results = Results.load(run / "results.json")
    if "leaderboard" not in results.tables:
        raise InputError(f"{run} has no results of the evaluation leaderboard")
    return results


def _facts(results: Results) -> dict[str, Any]:
    """Return the number of texts and pairs of a run, and its time."""
    counts = results.tables.rows("verify_counts")
    return {
        "n_pairs": len(results.tables.rows("matches")) // len(results.config["arms"]),
        "n_texts": counts[0]["n_texts"] if counts else 0,
        "n_calibration_tokens": counts[0]["n_calibration_tokens"] if counts else 0,
        "seconds": round(results.provenance["seconds"]),
    }


def _arms(runs: Mapping[str, Tables]) -> list[list[str]]:
    """Return the rows of the table of arms, with the mean time and largest memory of a match."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for tables in runs.values():
        for row in tables.rows("leaderboard_arms"):
            by_arm.setdefault(str(row["arm"]), []).append(row)
    return [
        [
            arm, rows[0]["objective"], rows[0]["matcher"], rows[0]["fold"], rows[0]["reads"],
            _mean(rows, "seconds"), _largest(rows, "peak_memory"),
        ]
        for arm, rows in by_arm.items()
    ]  # fmt: skip


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return f"{sum(values) / len(values):.2f}" if values else "–"


def _largest(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return f"{max(values):.0f}" if values else "–"


def _kinds(results: Iterable[Results], *parts: str) -> Iterator[Kind]:
    """Yield the classes of some parts of all arms, with the summaries in their docstrings."""
    arms = [arm for result in results for arm in result.config["arms"].values()]
    targets = dict.fromkeys(arm[part]["_target_"] for part in parts for arm in arms if part in arm)
    for target in targets:
        module, _, name = target.rpartition(".")
        text, _, _ = (inspect.getdoc(getattr(import_module(module), name)) or "").partition("\n\n")
        yield Kind(name, " ".join(text.replace("``", "`").split()))


def _uses(runs: Mapping[str, Tables]) -> Iterator[tuple[str, list[str], str]]:
    """Yield each use with a sentence for each family and one on all families."""
    for use in USES:
        sentences = [recommendation(use, family, tables) for family, tables in runs.items()]
        if any(sentences):
            yield use.name, [text for text in sentences if text], best_everywhere(use, runs)


def _statements(runs: Mapping[str, Tables]) -> Iterator[str]:
    """Yield comparisons with the first arm."""
    family, layers, arm, k = STATED
    if family in runs:
        text = pair_difference(runs[family], family, layers, arm, k)
        if text:
            yield text
    for name, tables in runs.items():
        text = against_first(name, tables, 1)
        if text:
            yield text


def _figures(page: Path, runs: Mapping[str, Path]) -> dict[str, str]:
    """Copy the figure of each run next to the page; return their paths on the page by family."""
    folder = page.with_name(f"{page.stem}_figures")
    copied = {}
    for family, run in runs.items():
        figure = run / "figures/leaderboard.png"
        if figure.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(figure, folder / f"{family}.png")
            copied[family] = f"{folder.name}/{family}.png"
    return copied


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])

"""Output of a run at its end."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT
from saematch.core.progress import ONLY_IN_FILE
from saematch.core.results import Results
from saematch.core.safe_text import shortened
from saematch.core.tables import Tables, rows_of
from saematch.judge.verdicts import UNSCORED
from saematch.report.cells import number, pair_label, pairs_of, percent, texts_of
from saematch.report.frames import (
    has,
    numbers,
    table,
    unique,
    values_of,
    where,
    with_metric,
)
from saematch.report.leaderboard import winner_lines
from saematch.report.metrics import other_metrics
from saematch.report.run_tables import run_tables
from saematch.report.summary import optimal_to
from saematch.report.text_tables import console, print_table
from saematch.report.verify import verify_lines

log = logging.getLogger(__name__)

AGAIN_LABELS = {"swapped": "in the other order", "repeated": "asked again",
                "second": "by the second judge"}  # fmt: skip
"""Names of the ways in which pairs are judged again."""
MANY_UNLABELLED = 0.05
"""Share of judgements without a label above which the output reports them."""
FILES = {"results.json": "results", "figures": "figures", "matches": "matches", "saes": "SAEs",
         "saematch.log": "log"}  # fmt: skip
"""Files and folders of a run, and what they contain."""


def print_results(results: Results, folder: Path) -> None:
    """Print the run's tables and the paths of its files; the run's log gets the same text."""
    printer = console(record=True)

    def say(line: str) -> None:
        printer.print(line, highlight=False, soft_wrap=True, markup=False)

    tables = results.tables
    for text_table in run_tables(tables):
        print_table(text_table, printer)
    lines = ("", *_live_recall(tables), *_unlabelled(tables), *_judged_again(tables),
             *verify_lines(tables), *winner_lines(tables), *_other_metrics(tables),
             *_refused(table(tables, "refused")), *optimality(tables), *_intervals(tables), "",
             *_files(results, folder))  # fmt: skip
    for line in lines:
        say(line)
    log.info("%s", printer.export_text(), extra=ONLY_IN_FILE)


def _intervals(tables: Tables) -> Iterator[str]:
    """Yield what ± means, and where the other intervals are."""
    if has(table(tables, "means"), "low"):
        yield "±: half of the mean's interval; results.json has the interval of each value"


def _files(results: Results, folder: Path) -> Iterator[str]:
    """Yield a line for each file or folder of the run, and lines on what to do with them."""
    for name, content in FILES.items():
        if (folder / name).exists():
            yield f"{content + ':':<13}{folder / name}"
    if "hidden_states" in results.provenance:
        yield f"hidden states: {results.provenance['hidden_states']['folder']}"
    if "saes" in results.tables:
        yield f"match the SAEs: sae=disk 'sae.path=\"{folder}/saes/layer_{{layer}}\"'"
    elif "matches" in results.tables:
        yield f"follow features in a browser: {_page(results, folder)}"


def _page(results: Results, folder: Path) -> str:
    """Return the address of the run's page, or the command that writes the page."""
    if results.config.get("show"):
        return (folder / "explorer/index.html").absolute().as_uri()
    return f"saematch show {shlex.quote(str(folder))}"


def _refused(refused: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each reason to leave out pairs, with the pairs."""
    for evaluation, arm, reason in unique(refused, "evaluation", "arm", "reason"):
        pairs = pairs_of(where(refused, evaluation=evaluation, arm=arm, reason=reason))
        by_arm = "" if arm is None else f" by {arm}"
        yield f"{evaluation}{by_arm} leaves out {', '.join(map(pair_label, pairs))}: {reason}"


def optimality(tables: Tables) -> Iterator[str]:
    """Yield a line for each arm on how good its matches are at least, and where their value is."""
    for name, gap in optimal_to(tables).items():
        arm = name.partition("/")[2]
        matches = where(tables["matches"], arm=arm)
        line = f"every match of {arm} is proven optimal" + (f" to {gap:.1e}" if gap else "")
        if has(matches, "certain"):
            least = matches["certain"].astype(float).min()
            least = math.floor(1000 * least) / 10  # a lower bound is not rounded up
            line += f"; at least {least:g}% of its pairs are in every optimal match"
        if has(matches, "n_90"):
            counted = matches[matches["n_90"] > 0]
            share = (counted["n_90"] / counted["n_entries"]).astype(float).min()
            line += f"; 90% of the value over chance is in as few as {share:.0%} of its pairs"
        yield line


def _live_recall(tables: Tables) -> Iterator[str]:
    """Yield a line on the recall over features that fired, where recall is known."""
    recall = where(table(tables, "means"), metric="recall_live")
    for suites in values_of(recall, "suites"):
        label = "" if suites == DEFAULT else f" of {suites}"
        arms = _by_arm(where(recall, suites=suites), tables.column("recall_live"), "value")
        yield f"recall over features{label} that fired, mean over pairs: {arms}"


def _other_metrics(tables: Tables) -> Iterator[str]:
    """Yield a line for each logged metric of evaluations of other packages."""
    for name, column in other_metrics(tables):
        values = with_metric(tables[name], column.name)
        if "arm" in values:
            means = values.groupby("arm", sort=False, as_index=False)[column.name].mean()
            yield f"{column.with_unit}, mean over pairs: {_by_arm(means, column, column.name)}"
        else:
            (text,) = texts_of(column, [numbers(values, column.name).mean()])
            yield f"{column.with_unit}, mean: {text}"


def _by_arm(frame: pd.DataFrame, column: Column, values: str) -> str:
    texts = texts_of(column, numbers(frame, values).tolist())
    return ", ".join(f"{arm} {text}" for arm, text in zip(frame["arm"], texts, strict=True))


def _judged_again(tables: Tables) -> Iterator[str]:
    """Yield a line for each way in which a judge's pairs were judged again."""
    for row in rows_of(table(tables, "judge_agreement")):
        n_pairs, n_unscored = (int(str(row[name])) for name in ("n_pairs", "n_unscored"))
        agreement = percent(row["agreement"])
        line = f"judge, {AGAIN_LABELS[str(row['compared'])]}: the same label for {agreement} of "
        line += f"{n_pairs} pairs, kappa {number(row['kappa'])}"
        if row["compared"] == "swapped":
            line += f", change in score {number(row['score_difference'])}"
        yield line + (f"; {n_unscored} pairs without a label" if n_unscored else "")


def _unlabelled(tables: Tables) -> Iterator[str]:
    """Yield a line if many judgements have no label, with their reasons and an answer."""
    judgements = table(tables, "judgements")
    without = judgements[judgements["label"].isin(UNSCORED)] if len(judgements) else judgements
    if len(without) <= MANY_UNLABELLED * len(judgements):
        return
    counts = ", ".join(f"{n} {label}" for label, n in without["label"].value_counts().items())
    answers = where(without, label="UNPARSED")["evaluation"]
    example = f", such as {shortened(str(answers.iloc[0]))}" if len(answers) else ""
    yield (
        f"judge: {len(without)} of {len(judgements)} judgements have no label and count in no "
        f"score: {counts}{example}"
    )

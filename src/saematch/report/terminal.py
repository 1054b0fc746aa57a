"""Output of a run at its end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saematch.core.pairs import DEFAULT, NO_ARM, PAIR_COLUMNS
from saematch.core.results import Results
from saematch.core.tables import Tables, rows_of
from saematch.report.cells import number, pair_label, pairs_of
from saematch.report.frames import (
    datasets_of,
    has,
    numbers,
    skipped_layers,
    table,
    unique,
    values_of,
    where,
    with_metric,
)
from saematch.report.leaderboard import winner_lines
from saematch.report.metrics import other_metrics
from saematch.report.summary import optimal_to
from saematch.report.verify import verify_lines, verify_tables

HEADINGS = {
    "permute": "",
    "permute_raw": "raw scale",
    "reconstruct_current": "target\nSAE",
    "reconstruct_previous": "source\nSAE",
    "drop": "drop",
    "increment": "increment",
    "increment_free": "free\nincrement",
}
"""Headings of strategies."""
CONTROLS = {"random": "random\npairs", "identity": "equal\nindex", "ceiling": "same\ntwice",
            "paraphrase": "para-\nphrase"}  # fmt: skip
"""Headings of a judge's controls."""
EXPLAINER_HEADINGS = {"same": "{arm}", "different": "{arm}\n2 explainers"}
"""Headings of the table ``likeness``, by whether one explainer explained both features."""
MATCH_HEADINGS = {"recall": "recall", "matching_score": "score", "mse_W_dec": "MSE W_dec"}
"""Headings of metrics in the table of matches; it shows the first two metrics with values."""
_UNLIMITED = 10_000
"""Number of characters of a line that no table fills."""
SAE_HEADINGS = {
    "explained_variance": "explained\nvariance",
    "explained_variance_standardised": "standard-\nised",
    "l0": "L0",
    "dead_features": "dead",
    "threshold_mean": "mean\nthreshold",
    "threshold_spread": "threshold\nspread",
}


def print_results(results: Results, folder: Path) -> None:
    """Print the run's tables and the paths of its files."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    tables = results.tables
    for title, printed in _printed(tables):
        console.print(f"\n[bold]{escape(title)}[/]", soft_wrap=True, highlight=False)
        console.print(_fitting(printed, console))
    lines = (*_live_recall(table(tables, "means")), *verify_lines(tables), *winner_lines(tables),
             *_other_metrics(tables))  # fmt: skip
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in _refused(table(tables, "refused")):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in optimality(tables):
        console.print(line, highlight=False, soft_wrap=True)
    if "hidden_states" in results.provenance:
        states = results.provenance["hidden_states"]["folder"]
        console.print(f"hidden states: {states}", highlight=False, soft_wrap=True)
    if "saes" in tables:
        setting = f"sae=disk 'sae.path=\"{folder}/saes/layer_{{layer}}\"'"
        console.print(f"to match them: {setting}", highlight=False, soft_wrap=True, markup=False)
    for name in ("results.json", "figures", "matches", "saes"):
        if (folder / name).exists():
            console.print(f"written: {folder / name}", highlight=False, soft_wrap=True)
    if "matches" in tables:
        line = f"follow features in a browser: {_page(results, folder)}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _page(results: Results, folder: Path) -> str:
    """Return the address of the run's page, or the command that writes the page."""
    if results.config.get("show"):
        return (folder / "explorer/index.html").absolute().as_uri()
    return f"saematch show {shlex.quote(str(folder))}"


def _fitting(printed: Table, console: Console) -> Table | str:
    """Return the table, or else with rows as columns; a sentence if neither fits the console."""
    turned = _turned(printed)
    for fitting in (printed, turned):
        measured = console.measure(fitting, options=console.options.update_width(_UNLIMITED))
        if measured.minimum <= console.width:
            return fitting
    size = f"{printed.row_count} x {len(printed.columns) - 1} cells"
    return f"{size} do not fit this terminal: results.json has them, in tables"


def _turned(printed: Table) -> Table:
    """Return the table with a column for each row."""
    first, *others = ([str(cell) for cell in column.cells] for column in printed.columns)
    turned = _table(*first)
    turned.columns[0].header = ""
    for column, cells in zip(printed.columns[1:], others, strict=True):
        turned.add_row(str(column.header).replace("\n", " "), *cells)
    return turned


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
        line = f"every match of {arm} is proven optimal to {gap:.1e}"
        if has(matches, "certain"):
            least = matches["certain"].astype(float).min()
            least = math.floor(1000 * least) / 10  # a lower bound is not rounded up
            line += f"; at least {least} % of its pairs are in every optimal match"
        if has(matches, "n_90"):
            counted = matches[matches["n_90"] > 0]
            share = (counted["n_90"] / counted["n_entries"]).astype(float).min()
            line += f"; 90 % of the value over chance is in as few as {share:.0%} of them"
        yield line


def _printed(tables: Tables) -> Iterator[tuple[str, Table]]:
    """Yield titles and terminal tables."""
    if "matches" not in tables:
        if "saes" in tables:
            yield "SAEs, measured on tokens that they were not trained on", _sae_table(tables)
        return
    yield _match_table(tables)
    scores = table(tables, "judge_scores")
    if len(scores):
        label = tables.column("judge_score").label.replace("judge", "Judge", 1)
        yield f"{label} (share of SAME), from 1 different to 3 the same", _judge_table(scores)
    likeness = table(tables, "likeness")
    if len(likeness):
        title = "Likeness of the explanations of matched features (of random pairs)"
        yield title, _likeness_table(likeness)
    strategies = skipped_layers(tables)
    if len(strategies):
        datasets = ", ".join(datasets_of(strategies))
        title = f"Explained variance of the replaced hidden state, mean over {datasets}"
        yield title, _strategy_table(strategies, "explained_variance")
        title = f"Change in loss, nats a token, mean over {datasets}"
        yield title, _strategy_table(strategies, "delta_loss")
    for title, headings, rows in verify_tables(tables):
        printed = _table(*headings)
        for row in rows:
            printed.add_row(*row)
        yield title, printed


def _match_table(tables: Tables) -> tuple[str, Table]:
    matches = tables["matches"]
    arms = values_of(matches, "arm")
    metrics = [metric for metric in MATCH_HEADINGS if has(matches, metric)][:2]  # fits a terminal
    printed = _table(*(f"{MATCH_HEADINGS[metric]}\n{arm}" for metric in metrics for arm in arms))
    for pair in pairs_of(matches):
        rows = {row["arm"]: row for row in rows_of(where(matches, **pair.columns()))}
        cells = [number(rows.get(arm, {}).get(metric)) for metric in metrics for arm in arms]
        printed.add_row(pair_label(pair), *cells)
    labels = ", ".join(tables.column(metric).label for metric in metrics)
    return f"Matches: {labels}", printed


def _live_recall(means: pd.DataFrame) -> Iterator[str]:
    """Yield a line on the recall over features that fired, where recall is known."""
    recall = where(means, metric="recall_live")
    for suites in values_of(recall, "suites"):
        label = "" if suites == DEFAULT else f" of {suites}"
        arms = _by_arm(where(recall, suites=suites), "value")
        yield f"recall over features{label} that fired, mean over pairs: {arms}"


def _other_metrics(tables: Tables) -> Iterator[str]:
    """Yield a line for each logged metric of evaluations of other packages."""
    for name, column in other_metrics(tables):
        values = with_metric(tables[name], column.name)
        if "arm" in values:
            means = values.groupby("arm", sort=False, as_index=False)[column.name].mean()
            yield f"{column.with_unit}, mean over pairs: {_by_arm(means, column.name)}"
        else:
            yield f"{column.with_unit}, mean: {number(numbers(values, column.name).mean())}"


def _by_arm(frame: pd.DataFrame, metric: str) -> str:
    values = zip(frame["arm"], numbers(frame, metric), strict=True)
    return ", ".join(f"{arm} {number(value)}" for arm, value in values)


def _sae_table(tables: Tables) -> Table:
    printed = _table(*SAE_HEADINGS.values())
    for row in rows_of(tables["saes"]):
        printed.add_row(str(row["layer"]), *(_plain(row[name]) for name in SAE_HEADINGS))
    return printed


def _judge_table(scores: pd.DataFrame) -> Table:
    columns = [("pair", arm, arm) for arm in values_of(where(scores, role="pair"), "arm")]
    roles = values_of(scores, "role")
    columns += [(role, NO_ARM, heading) for role, heading in CONTROLS.items() if role in roles]
    printed = _table(*(heading for _, _, heading in columns))
    for pair in pairs_of(where(scores, role="pair")):
        of_pair = rows_of(where(scores, **pair.columns()))
        cells = {
            (row["role"], row["arm"]):
            f"{number(row['judge_score'])} ({float(row['same_share'] or 0):.0%})"
            for row in of_pair
        }  # fmt: skip
        printed.add_row(
            pair_label(pair), *(cells.get((role, arm), "–") for role, arm, _ in columns)
        )
    return printed


def _likeness_table(likeness: pd.DataFrame) -> Table:
    columns = unique(likeness, "explainers", "arm")
    columns.sort(key=lambda column: column[0], reverse=True)  # same, then different
    printed = _table(*(EXPLAINER_HEADINGS[kind].format(arm=arm) for kind, arm in columns))
    for pair in pairs_of(likeness):
        cells = {
            (row["explainers"], row["arm"]):
            f"{number(row['likeness'])} ({number(row['likeness_random'])})"
            for row in rows_of(where(likeness, **pair.columns()))
        }  # fmt: skip
        printed.add_row(pair_label(pair), *(cells.get(column, "–") for column in columns))
    return printed


def _strategy_table(strategies: pd.DataFrame, metric: str) -> Table:
    partial = strategies[strategies["quantile"].notna()]
    if len(partial):  # show the first arm with partial matches only
        strategies = where(partial, arm=partial["arm"].iloc[0])
    keys = ["arm", "strategy", "quantile"]
    cells = unique(strategies, *keys)
    headings = []
    for arm, strategy, quantile in cells:
        name = HEADINGS.get(strategy, strategy)
        heading = name if arm == NO_ARM else f"{arm}\n{name}"
        share = "" if quantile is None else f"q={quantile:g}"
        headings.append(f"{heading}{share}".strip())
    printed = _table(*headings)
    filled = strategies.assign(**{metric: numbers(strategies, metric, 0.0)})
    by_cell = filled.groupby([*PAIR_COLUMNS, *keys], sort=False, dropna=False, as_index=False)
    means = by_cell[metric].mean()
    for pair in pairs_of(strategies):
        rows = rows_of(where(means, **pair.columns()))
        values = {tuple(row[key] for key in keys): row[metric] for row in rows}
        printed.add_row(pair_label(pair), *(number(values.get(cell)) for cell in cells))
    return printed


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layers")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _plain(value: object) -> str:
    return str(value) if isinstance(value, int) else number(value)

"""What a run says at its end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from saematch.core.columns import column_of
from saematch.core.pairs import DEFAULT, NO_ARM, Pair, pair_of
from saematch.core.results import Results
from saematch.core.tables import Row, Tables
from saematch.report.summary import optimal_to

HEADINGS = {
    "permute": "",
    "permute_raw": "raw scale",
    "reconstruct_current": "target\nSAE",
    "reconstruct_previous": "source\nSAE",
    "drop": "drop",
}
"""Short names of strategies, for the heads of columns."""
CONTROLS = {"random": "random\npairs", "identity": "equal\nindex", "ceiling": "same\ntwice",
            "paraphrase": "para-\nphrase"}  # fmt: skip
"""Heads of the controls of a judge."""
SAE_COLUMNS = {
    "explained_variance": "explained\nvariance",
    "explained_variance_standardised": "standard-\nised",
    "l0": "L0",
    "dead_features": "dead",
    "threshold_mean": "mean\nthreshold",
    "threshold_spread": "threshold\nspread",
}


def print_results(results: Results, folder: Path) -> None:
    """Print the run's tables and where everything was written."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    for title, table in _tables(results):
        console.print(f"\n[bold]{title}[/]", soft_wrap=True, highlight=False)
        console.print(table)
    for line in _live_recall(results.tables.rows("means")):
        console.print(line, highlight=False, soft_wrap=True)
    for line in _refused(results.tables.rows("refused")):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in _proven(results.tables):
        console.print(line, highlight=False, soft_wrap=True)
    if "hidden_states" in results.provenance:
        kept = results.provenance["hidden_states"]["folder"]
        console.print(f"hidden states: {kept}", highlight=False, soft_wrap=True)
    if "saes" in results.tables:
        taken = f"sae=disk 'sae.path=\"{folder}/saes/layer_{{layer}}\"'"
        console.print(f"to match them: {taken}", highlight=False, soft_wrap=True, markup=False)
    for what in ("results.json", "figures", "matches", "saes"):
        if (folder / what).exists():
            console.print(f"written: {folder / what}", highlight=False, soft_wrap=True)


def _refused(rows: list[Row]) -> Iterator[str]:
    """Yield a line for each reason to leave out pairs, with the pairs."""
    pairs: dict[tuple, list[str]] = defaultdict(list)
    for row in rows:
        pairs[row["evaluation"], row["arm"], row["reason"]].append(_label(pair_of(row)))
    for (evaluation, arm, reason), labels in pairs.items():
        of_arm = "" if arm is None else f" by {arm}"
        yield f"{evaluation}{of_arm} leaves out {', '.join(labels)}: {reason}"


def _proven(tables: Tables) -> Iterator[str]:
    """Say of each arm how good its matches are at least, and how few pairs carry their value."""
    for name, gap in optimal_to(tables).items():
        arm = name.partition("/")[2]
        rows = [row for row in tables.rows("matches") if row["arm"] == arm]
        line = f"every match of {arm} is proven optimal to {gap:.1e}"
        certain = [float(row["certain"]) for row in rows if row["certain"] is not None]
        if certain:
            least = math.floor(1000 * min(certain)) / 10  # a lower bound is not rounded up
            line += f"; at least {least} % of its pairs are in every optimal match"
        shares = [int(row["n_90"]) / int(row["n_entries"]) for row in rows if row["n_90"]]
        if shares:
            line += f"; 90 % of the value over chance is in as few as {min(shares):.0%} of them"
        yield line


def _tables(results: Results) -> Iterator[tuple[str, Table]]:
    if "matches" not in results.tables:
        if "saes" in results.tables:
            yield _sae_table(results.tables.rows("saes"))
        return
    yield _match_table(results.tables.rows("matches"))
    judged = results.tables.rows("judge_scores")
    if judged:
        yield "Judge score (share of SAME), from 1 different to 3 the same", _judge_table(judged)
    strategies = results.tables.rows("strategies")
    if strategies:
        over = ", ".join(dict.fromkeys(str(row["dataset"]) for row in strategies))
        title = f"Explained variance of the replaced hidden state, mean over {over}"
        yield title, _strategy_table(strategies, "explained_variance")
        title = f"Change in loss, nats a token, mean over {over}"
        yield title, _strategy_table(strategies, "delta_loss")


def _match_table(rows: list[Row]) -> tuple[str, Table]:
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    metrics = {"recall": "recall", "matching_score": "score", "mse_W_dec": "MSE W_dec"}
    known = [m for m in metrics if any(row.get(m) is not None for row in rows)]
    shown = known[:2]  # of three metrics times the arms, what fits a terminal
    table = _table()
    for metric in shown:
        for arm in arms:
            table.add_column(f"{metrics[metric]}\n{arm}", justify="right")
    for pair in _pairs(rows):
        at = {r["arm"]: r for r in rows if pair_of(r) == pair}
        cells = [_number(at.get(arm, {}).get(metric)) for metric in shown for arm in arms]
        table.add_row(_label(pair), *cells)
    return "Matches: " + ", ".join(column_of(m).label for m in shown), table


def _live_recall(rows: list[Row]) -> Iterator[str]:
    """Yield a line on the recall over features that fired, where recall is known."""
    by_set: dict[object, list[str]] = defaultdict(list)
    for row in rows:
        if row["metric"] == "recall_live":
            by_set[row["suites"]].append(f"{row['arm']} {_number(row['value'])}")
    for saes, arms in by_set.items():
        label = "" if saes == DEFAULT else f" of {saes}"
        yield f"recall over features{label} that fired, mean over pairs: {', '.join(arms)}"


def _sae_table(rows: list[Row]) -> tuple[str, Table]:
    table = _table()
    for head in SAE_COLUMNS.values():
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(str(row["layer"]), *(_plain(row[name]) for name in SAE_COLUMNS))
    return "SAEs, measured on tokens that they were not trained on", table


def _judge_table(rows: list[Row]) -> Table:
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows if row["role"] == "pair"))
    columns = [("pair", arm, arm) for arm in arms]
    known = {row["role"] for row in rows}
    columns += [(role, NO_ARM, head) for role, head in CONTROLS.items() if role in known]
    table = _table()
    for _, _, head in columns:
        table.add_column(head, justify="right")
    for pair in _pairs([row for row in rows if row["role"] == "pair"]):
        at = {(row["role"], row["arm"]): row for row in rows if pair_of(row) == pair}
        cells = [at.get((role, arm)) for role, arm, _ in columns]
        table.add_row(_label(pair), *("–" if row is None else _judged(row) for row in cells))
    return table


def _judged(row: Row) -> str:
    return f"{_number(row['judge_score'])} ({float(row['same_share'] or 0):.0%})"


def _strategy_table(rows: list[Row], metric: str) -> Table:
    curves = [row for row in rows if row["quantile"] is not None]
    if curves:  # of the first arm that has one
        rows = [row for row in curves if row["arm"] == curves[0]["arm"]]
    cells = list(dict.fromkeys((str(r["arm"]), str(r["strategy"]), r["quantile"]) for r in rows))
    table = _table()
    for arm, strategy, quantile in cells:
        head = HEADINGS[strategy] if arm == NO_ARM else f"{arm}\n{HEADINGS[strategy]}"
        share = "" if quantile is None else f"q={quantile:g}"
        table.add_column(f"{head}{share}".strip(), justify="right")
    for pair in _pairs(rows):
        of_cell: dict[tuple, list[float]] = defaultdict(list)
        for row in rows:
            if pair_of(row) == pair:
                cell = (row["arm"], row["strategy"], row["quantile"])
                of_cell[cell].append(float(row[metric] or 0))
        means = (fmean(of_cell[cell]) if cell in of_cell else None for cell in cells)
        table.add_row(_label(pair), *map(_number, means))
    return table


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layers")
    return table


def _pairs(rows: list[Row]) -> list[Pair]:
    return list(dict.fromkeys(map(pair_of, rows)))


def _label(pair: Pair) -> str:
    over_all = pair.source.layer is None  # as the judge's scores over all pairs are
    layers = "all" if over_all else f"{pair.source.layer}→{pair.target.layer}"
    return layers if pair.suites == DEFAULT else f"{layers} {pair.suites}"


def _plain(value: object) -> str:
    return str(value) if isinstance(value, int) else _number(value)


def _number(value: object) -> str:
    return "–" if value is None or math.isnan(float(str(value))) else f"{float(str(value)):.3f}"

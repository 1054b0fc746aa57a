"""Tables that a run prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from saematch.core.pairs import DEFAULT, NO_ARM, PAIR_COLUMNS, POOLED, Pair, pair_of
from saematch.core.tables import Row, Tables, Value, rows_of
from saematch.report.cells import (
    half_width,
    number,
    pair_label,
    pairs_of,
    percent,
    texts_of,
)
from saematch.report.frames import (
    datasets_of,
    has,
    numbers,
    skipped_layers,
    table,
    unique,
    values_of,
    where,
)
from saematch.report.text_tables import TextTable, broken
from saematch.report.verify import verify_tables

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
SAE_HEADINGS = {
    "explained_variance": "explained\nvariance",
    "explained_variance_standardised": "standard-\nised",
    "l0": "L0",
    "dead_features": "dead",
    "threshold_mean": "mean\nthreshold",
    "threshold_spread": "threshold\nspread",
}


def run_tables(tables: Tables) -> Iterator[TextTable]:
    """Yield the tables to print."""
    if "matches" not in tables:
        if "saes" in tables:
            yield _sae_table(tables)
        return
    matches = _match_table(tables)
    if matches.headings:
        yield matches
    scores = table(tables, "judge_scores")
    if len(scores):
        yield _judge_table(tables, scores)
    likeness = table(tables, "likeness")
    if len(likeness):
        yield _likeness_table(likeness)
    strategies = skipped_layers(tables)
    if len(strategies):
        datasets = ", ".join(datasets_of(strategies))
        title = f"Explained variance of the replaced hidden state, mean over {datasets}"
        yield _strategy_table(tables, strategies, "explained_variance", title)
        title = f"Change in loss, nats a token, mean over {datasets}"
        yield _strategy_table(tables, strategies, "delta_loss", title)
    yield from verify_tables(tables)


def _match_table(tables: Tables) -> TextTable:
    matches = tables["matches"]
    metrics = [metric for metric in MATCH_HEADINGS if has(matches, metric)][:2]
    pairs, means = pairs_of(matches), _Means(tables)
    headings, columns = [], []
    for metric in metrics:
        for arm in values_of(matches, "arm"):
            of_arm = {pair_of(row): row for row in rows_of(where(matches, arm=arm))}
            values = [of_arm.get(pair, {}).get(metric) for pair in pairs]
            headings.append(f"{MATCH_HEADINGS[metric]}\n{broken(arm)}")
            values += means.values(pairs, arm, None, None, metric)
            columns.append(texts_of(tables.column(metric), values))
    labels = ", ".join(tables.column(metric).label for metric in metrics)
    row_heads = [*map(pair_label, pairs), *means.heads(pairs)]
    rows = [list(row) for row in zip(row_heads, *columns, strict=True)]
    return TextTable(f"Matches: {labels}", headings, rows)


class _Means:
    """Means over the pairs of a run, from the table ``means``, and half of their intervals."""

    def __init__(self, tables: Tables) -> None:
        means = table(tables, "means")
        if len(means):
            means = means[means["dataset"].isna() | (means["dataset"] == POOLED)]
        keys = ("suites", "arm", "strategy", "quantile", "metric")
        self.rows: dict[tuple, Row] = {
            tuple(row[key] for key in keys): row for row in rows_of(means)
        }

    def heads(self, pairs: Sequence[Pair]) -> list[str]:
        """Return the heads of two rows for each pair of suites: means, and half intervals."""
        labels = ["" if suites == DEFAULT else f" {suites}" for suites in self._suites(pairs)]
        return [f"{head}{label}" for label in labels for head in ("mean", "±")]

    def values(self, pairs: Sequence[Pair], *key: Value) -> list[Value]:
        """Return the mean of each pair of suites, and half of its interval; None without one.

        ``key`` has arm, strategy, quantile and metric.
        """
        values: list[Value] = []
        for suites in self._suites(pairs):
            row = self.rows.get((suites, *key), {})
            value = row.get("value")
            values += [value, half_width(value, row.get("low"), row.get("high"))]
        return values

    def _suites(self, pairs: Sequence[Pair]) -> list[str]:
        return list(dict.fromkeys(pair.suites for pair in pairs)) if self.rows else []


def _half_of(row: Row, metric: str) -> float | None:
    """Return half the width of a metric's interval, None without one."""
    return half_width(*(row.get(f"{metric}{end}") for end in ("", "_low", "_high")))


def _sae_table(tables: Tables) -> TextTable:
    rows = [
        [str(row["layer"]), *(_plain(row[name]) for name in SAE_HEADINGS)]
        for row in rows_of(tables["saes"])
    ]
    title = "SAEs, measured on tokens that they were not trained on"
    return TextTable(title, list(SAE_HEADINGS.values()), rows)


def _judge_table(tables: Tables, scores: pd.DataFrame) -> TextTable:
    columns = [("pair", arm, broken(arm)) for arm in values_of(where(scores, role="pair"), "arm")]
    roles = values_of(scores, "role")
    columns += [(role, NO_ARM, heading) for role, heading in CONTROLS.items() if role in roles]
    label = tables.column("judge_score").label.replace("judge", "Judge", 1)
    rows = []
    for pair in pairs_of(where(scores, role="pair")):
        of_pair = rows_of(where(scores, **pair.columns()))
        cells = {(row["role"], row["arm"]): row for row in of_pair}
        of_columns = [cells.get((role, arm), {}) for role, arm, _ in columns]
        rows.append([pair_label(pair), *(number(row.get("judge_score")) for row in of_columns)])
        if pair.source.layer is None:
            rows.append(["±", *(number(_half_of(row, "judge_score")) for row in of_columns)])
            rows.append(["SAME", *(percent(row.get("same_share")) for row in of_columns)])
            rows.append(["±", *(percent(_half_of(row, "same_share")) for row in of_columns)])
    title = f"{label}: 1 different to 3 the same; SAME: its share"
    return TextTable(title, [heading for _, _, heading in columns], rows)


def _likeness_table(likeness: pd.DataFrame) -> TextTable:
    columns = unique(likeness, "explainers", "arm")
    columns.sort(key=lambda column: column[0], reverse=True)  # same, then different
    headings = [EXPLAINER_HEADINGS[kind].format(arm=broken(arm)) for kind, arm in columns]
    title = "Likeness of the explanations of matched features (of random pairs)"
    rows = []
    for pair in pairs_of(likeness):
        cells = {
            (row["explainers"], row["arm"]):
            f"{number(row['likeness'])} ({number(row['likeness_random'])})"
            for row in rows_of(where(likeness, **pair.columns()))
        }  # fmt: skip
        rows.append([pair_label(pair), *(cells.get(column, "–") for column in columns)])
    return TextTable(title, headings, rows)


def _strategy_table(tables: Tables, strategies: pd.DataFrame, metric: str, title: str) -> TextTable:
    partial = strategies[strategies["quantile"].notna()]
    if len(partial):  # show the first arm with partial matches only
        strategies = where(partial, arm=partial["arm"].iloc[0])
    keys = ["arm", "strategy", "quantile"]
    cells = unique(strategies, *keys)
    headings = []
    for arm, strategy, quantile in cells:
        name = HEADINGS.get(strategy, strategy)
        heading = name if arm == NO_ARM else f"{broken(arm)}\n{name}"
        share = "" if quantile is None else f"q={quantile:g}"
        headings.append(f"{heading}{share}".strip())
    filled = strategies.assign(**{metric: numbers(strategies, metric)})
    by_cell = filled.groupby([*PAIR_COLUMNS, *keys], sort=False, dropna=False, as_index=False)
    over_sets = by_cell[metric].mean()
    pairs, means, rows = pairs_of(strategies), _Means(tables), []
    for pair in pairs:
        of_pair = rows_of(where(over_sets, **pair.columns()))
        values = {tuple(row[key] for key in keys): row[metric] for row in of_pair}
        rows.append([pair_label(pair), *(number(values.get(cell)) for cell in cells)])
    of_cells = [means.values(pairs, *cell, metric) for cell in cells]
    for head, *of_row in zip(means.heads(pairs), *of_cells, strict=True):
        rows.append([head, *map(number, of_row)])
    return TextTable(title, headings, rows)


def _plain(value: object) -> str:
    return str(value) if isinstance(value, int) else number(value)

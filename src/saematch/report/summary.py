"""Flat numbers from tables: metrics by layer, and the means that runs are compared by."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from saematch.core.errors import InputError
from saematch.core.pairs import DEFAULT, PAIR_COLUMNS, SUITE_COLUMNS, suites_label
from saematch.core.tables import Row, Tables, Value, rows_of
from saematch.report.frames import has, table, with_metric

IN_NAMES = ("dataset", "arm", "strategy")
"""Key columns that are parts of a metric's name."""
LOGGED = ("layer", "name", "value", "metric", "prefix", "dataset", "line")
"""Columns of the logged values. ``line`` is the name without prefix, metric and data set."""
MAX_LINES = 40
"""Largest number of lines of a chart."""
PREFIXES = {"saes": "sae/"}
"""Beginning of the names of a table's metrics."""


def history_by_layer(tables: Tables) -> dict[int, dict[str, float]]:
    """Return every logged metric of each layer; a pair's metrics belong to its target layer.

    A name is the metric, then data set, arm and strategy if the table has them, separated by ``/``:
    ``<metric>/<arm>``, ``<metric>/<data set>/<arm>/<strategy>``, ``<metric>``. A partial match adds
    ``@<quantile>``. ``/from_<layer>`` follows if a target has several sources, then ``/<suite>`` or
    ``/<suite>-<suite>`` outside the default suite.
    """
    history: dict[int, dict[str, float]] = {}
    for layer, of_layer in _logged(tables).groupby("layer"):
        history[int(layer)] = dict(zip(of_layer["name"], of_layer["value"], strict=True))
    return history


class Chart(NamedTuple):
    """A metric by layer."""

    name: str
    """The metric, followed by ``/<data set>`` if it has one."""
    metric: str
    title: str
    points: list[tuple[int, str, float]]
    """Layer, line and value; a line is an arm, or an arm and its strategy."""


def charts_by_layer(tables: Tables) -> list[Chart]:
    """Return a chart of each logged metric and data set that has values at several layers.

    The judge's controls are lines of the chart of its score. Metrics with more than ``MAX_LINES``
    lines have no chart.
    """
    charts = []
    by_chart = ["prefix", "metric", "dataset"]
    for keys, rows in _logged(tables).groupby(by_chart, sort=False, dropna=False):
        prefix, metric, dataset = keys
        if rows["layer"].nunique() < 2 or rows["line"].nunique() > MAX_LINES:
            continue
        column = tables.column(metric)
        name, title = f"{prefix}{metric}", column.with_unit
        if pd.notna(dataset):
            name, title = f"{name}/{dataset}", f"{title}, {dataset}"
        points = rows[["layer", "line", "value"]].sort_values(["line", "layer"], kind="stable")
        charts.append(Chart(name, metric, title, list(points.itertuples(index=False, name=None))))
    return charts


def mean_metrics(tables: Tables) -> dict[str, float]:
    """Return the mean of every logged metric over layers, under the names of the history."""
    return _logged(tables).groupby("name", sort=False)["value"].mean().to_dict()


def agreement_metrics(tables: Tables) -> dict[str, float]:
    """Return ``judge_agreement/<compared>`` and ``judge_kappa/<compared>``."""
    agreement = table(tables, "judge_agreement")
    return {
        f"judge_{metric}/{compared}": float(value)
        for metric in ("agreement", "kappa")
        for compared, value in _by_row(with_metric(agreement, metric), "compared", metric)
    }


def _by_row(frame: pd.DataFrame, key: str, metric: str) -> zip:
    return zip(frame[key], frame[metric], strict=True) if len(frame) else zip(strict=True)


def optimal_to(tables: Tables) -> dict[str, float]:
    """Return ``optimal_to/<arm>``: the largest gap of an arm whose matches all have a gap.

    The gap is over chance, or relative for partial matches, which have no chance value.
    """
    matches = table(tables, "matches")
    if matches.empty:
        return {}
    gap = matches["gap_over_chance"].astype("Float64").fillna(matches["gap"].astype("Float64"))
    gaps = gap.groupby(matches["arm"], sort=False).max(skipna=False)
    return {f"optimal_to/{arm}": float(value) for arm, value in gaps.items() if value is not pd.NA}


def _logged(tables: Tables) -> pd.DataFrame:
    """Return the values of every logged metric, with its layer, name and parts of the name."""
    several = _has_several_sources(table(tables, "matches"))
    values: list[Row] = []
    for name, frame in tables.items():
        columns = tables.columns.items()
        logged = [metric for metric, c in columns if name in c.logged and has(frame, metric)]
        if logged:
            layer = _layer_column(name, frame, logged[0])
            rows = rows_of(with_metric(frame, layer))
            labels = [_label(row, row[layer], PREFIXES.get(name, ""), several) for row in rows]
            for metric in logged:
                values += [
                    _value(row, label, metric)
                    for row, label in zip(rows, labels, strict=True)
                    if row[metric] is not None
                ]
    for row in rows_of(_controls(tables)):
        name = f"judge_control/{row['role']}{_tail(row, several)}"
        line = name.removeprefix("judge_")
        value = _value(row, _label(row, row["target_layer"], "", several), "judge_score")
        values.append({**value, "name": name, "line": line, "dataset": None})
    return pd.DataFrame(values, columns=list(LOGGED))


class _Label(NamedTuple):
    """Layer of a row, and parts of the names of its values."""

    layer: Value
    prefix: str
    end: str
    line: str


def _label(row: Row, layer: Value, prefix: str, several: bool) -> _Label:
    tail = _tail(row, several)
    short = _parts({**row, "dataset": None}) + tail
    return _Label(layer, prefix, _parts(row) + tail, short.removeprefix("/"))


def _value(row: Row, label: _Label, metric: str) -> Row:
    """Return a value as a row with the columns ``LOGGED``."""
    return {
        "layer": label.layer,
        "name": f"{label.prefix}{metric}{label.end}",
        "value": float(str(row[metric])),
        "metric": metric,
        "prefix": label.prefix,
        "dataset": row.get("dataset"),
        "line": label.line or metric,
    }


def _layer_column(name: str, frame: pd.DataFrame, metric: str) -> str:
    """Return the column of the layer that a row's metrics belong to."""
    for layer in ("target_layer", "layer"):
        if layer in frame:
            return layer
    raise InputError(
        f"metric {metric} is logged from the table {name}, which has no column target_layer or "
        "layer: add the column, or remove the table from the metric's logged"
    )


def _controls(tables: Tables) -> pd.DataFrame:
    """Return the scores of a judge's controls at each pair."""
    scores = table(tables, "judge_scores")
    if scores.empty:
        return scores
    controls = scores[(scores["role"] != "pair") & scores["target_layer"].notna()]
    return with_metric(controls, "judge_score")


def _has_several_sources(matches: pd.DataFrame) -> bool:
    """Whether a target SAE is matched with several source layers."""
    if matches.empty:
        return False
    targets = ["source_suite", "target_suite", "target_layer"]
    pairs = matches[list(PAIR_COLUMNS)].drop_duplicates()
    return len(pairs) > len(pairs[targets].drop_duplicates())


def _parts(row: Row) -> str:
    """Return the parts of names that are keys, as ``/<data set>/<arm>/<strategy>@<quantile>``."""
    keys = [f"/{row[key]}" for key in IN_NAMES if row.get(key) is not None]
    quantile = row.get("quantile")
    return "".join(keys) + ("" if quantile is None else f"@{quantile:g}")


def _tail(row: Row, several: bool) -> str:
    """Return the end of names: the source layer if a target has several, then the suites."""
    source = f"/from_{row['source_layer']}" if several and "source_layer" in row else ""
    names = ("suite", "suite") if "suite" in row else SUITE_COLUMNS
    if names[0] not in row:
        return source
    label = suites_label(*(str(row[name]) for name in names))
    return source if label == DEFAULT else f"{source}/{label}"

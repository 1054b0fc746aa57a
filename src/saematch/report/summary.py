"""Flat numbers from tables: what runs are compared by, and what is logged against the layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean

from saematch.core.pairs import DEFAULT, pair_of, suites_of
from saematch.core.tables import Row, Tables


def _logged(tables: Tables, table: str) -> list[str]:
    return [column.name for column in tables.columns.values() if table in column.logged]


def history_by_layer(tables: Tables) -> dict[int, dict[str, float]]:
    """Return every metric of each layer; those of a pair stand at its target layer.

    Names: ``<metric>/<arm>``, ``<metric>/<data set>/<arm>/<strategy>`` and ``<metric>`` of a layer;
    a partial match adds ``@<quantile>`` to the strategy. ``/from_<layer>`` follows where a target
    has several sources, then ``/<suite>`` or ``/<suite>-<suite>`` outside the default suite.
    """
    history: dict[int, dict[str, float]] = defaultdict(dict)
    for layer, name, value in _values(tables):
        history[layer][name] = value
    return dict(sorted(history.items()))


def mean_metrics(tables: Tables) -> dict[str, float]:
    """Return the mean of every metric over layers, under the same names."""
    values: dict[str, list[float]] = defaultdict(list)
    for _, name, value in _values(tables):
        values[name].append(value)
    return {name: fmean(of_name) for name, of_name in values.items()}


def agreement_metrics(tables: Tables) -> dict[str, float]:
    """Return ``judge_agreement/<compared>`` and ``judge_kappa/<compared>``."""
    return {
        f"judge_{name}/{row['compared']}": float(row[name] or 0)
        for row in tables.rows("judge_agreement")
        for name in ("agreement", "kappa")
        if row[name] is not None
    }


def optimal_to(tables: Tables) -> dict[str, float]:
    """Return ``optimal_to/<arm>``: the largest gap of its matches, where all have one.

    Over chance; for partial matches, which have no chance value, the relative gap.
    """
    gaps: dict[str, list[float | None]] = defaultdict(list)
    for row in tables.rows("matches"):
        over_chance = row["gap_over_chance"]
        gaps[f"optimal_to/{row['arm']}"].append(row["gap"] if over_chance is None else over_chance)
    proven = {name: [gap for gap in of_arm if gap is not None] for name, of_arm in gaps.items()}
    return {name: max(found) for name, found in proven.items() if len(found) == len(gaps[name])}


def _values(tables: Tables) -> Iterator[tuple[int, str, float]]:
    matches = tables.rows("matches")
    pairs = {pair_of(row) for row in matches}
    several = len(pairs) > len({(pair.suites, pair.target.layer) for pair in pairs})

    def tail(row: Row) -> str:
        start = f"/from_{row['source_layer']}" if several and "source_layer" in row else ""
        suites = str(row["suite"]) if "suite" in row else suites_of(row)
        return start + ("" if suites == DEFAULT else f"/{suites}")

    for row in matches:
        for metric in _logged(tables, "matches"):
            yield from _value(row, "target_layer", metric, f"{metric}/{row['arm']}{tail(row)}")
    for row in tables.rows("judge_scores"):
        if row["role"] != "pair" and row["target_layer"] is not None:
            name = f"judge_control/{row['role']}{tail(row)}"
            yield from _value(row, "target_layer", "judge_score", name)
    for row in tables.rows("strategies"):
        share = "" if row["quantile"] is None else f"@{row['quantile']:g}"
        cell = f"{row['dataset']}/{row['arm']}/{row['strategy']}{share}{tail(row)}"
        for metric in _logged(tables, "strategies"):
            yield from _value(row, "target_layer", metric, f"{metric}/{cell}")
    for row in tables.rows("layers"):
        for metric in _logged(tables, "layers"):
            yield from _value(row, "layer", metric, f"{metric}{tail(row)}")
    for row in tables.rows("saes"):
        for metric in _logged(tables, "saes"):
            yield from _value(row, "layer", metric, f"sae/{metric}")


def _value(row: Row, layer: str, metric: str, name: str) -> Iterator[tuple[int, str, float]]:
    value = row.get(metric)  # a run without evaluation, or an SAE without thresholds, has fewer
    if value is not None:
        yield int(row[layer] or 0), name, float(value)

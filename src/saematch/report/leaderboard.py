"""Ranks of arms in runs with the evaluation ``leaderboard``: tables, sentences and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT
from saematch.core.tables import Row, Tables, rows_of
from saematch.report.frames import arms_of, table, unique, where
from saematch.report.style import dots, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Runs = Mapping[str, Tables]
"""Tables of each run, by the family of SAEs."""
KEYS = ("metric", "strategy", "k", "partners")
OFF_RATE, RECALL, LOSS = "off_rate_over_random", "recall_at_live", "delta_loss"
FIGURE: tuple[dict[str, object], ...] = (
    {"metric": OFF_RATE, "k": 1},
    {"metric": OFF_RATE, "k": 5},
    {"metric": OFF_RATE, "k": 20},
    {"metric": RECALL, "k": 1},
    {"metric": "matching_score", "partners": "one"},
    {"metric": LOSS, "strategy": "increment"},
)
"""Metrics in the figure."""
ACROSS = 3
"""Number of panels side by side."""
BEST, OTHER = "#0072B2", "#999999"
"""Colours of the arms of rank 1 and of all others."""


class Board(NamedTuple):
    """A table of texts for one metric: a row for each arm, a column for each family."""

    title: str
    rows: list[list[str]]


class Use(NamedTuple):
    """A use of a match, and the metric that decides which arm serves it best."""

    name: str
    key: Mapping[str, object]
    """Metric, and its number of partners or strategy."""


USES = (
    Use("Name one partner for each feature", {"metric": OFF_RATE, "k": 1}),
    Use("Name up to five partners", {"metric": OFF_RATE, "k": 5}),
    Use("Name up to twenty partners", {"metric": OFF_RATE, "k": 20}),
    Use("Find the same feature in a related SAE", {"metric": RECALL, "k": 1}),
    Use("Skip a layer", {"metric": LOSS}),
)


def of_metric(tables: Tables, key: Mapping[str, object]) -> DataFrame:
    """Return the rows of ``leaderboard`` over all pairs that have the values of key columns."""
    return where(table(tables, "leaderboard"), **{"by": "all", **key})


def title_of(column: Column, key: Mapping[str, object]) -> str:
    """Return the name of a metric with its strategy, number of partners and class of arms."""
    k, strategy, partners = (key.get(name) for name in ("k", "strategy", "partners"))
    remarks = [
        f"k = {k}" if k is not None else "",
        str(strategy) if strategy is not None else "",
        f"arms with {partners} partner{'' if partners == 'one' else 's'}" if partners else "",
    ]
    return ", ".join(filter(None, [column.with_unit, *remarks]))


def metrics_of(runs: Runs) -> list[dict[str, object]]:
    """Return the keys of all metrics of the runs, in order of first appearance."""
    keys: dict[tuple, None] = {}
    for tables in runs.values():
        keys |= dict.fromkeys(unique(of_metric(tables, {}), *KEYS))
    return [dict(zip(KEYS, key, strict=True)) for key in keys]


def boards(runs: Runs) -> Iterator[Board]:
    """Yield a table for each metric over all pairs."""
    for key in metrics_of(runs):
        frames = {family: of_metric(tables, key) for family, tables in runs.items()}
        arms = dict.fromkeys(arm for frame in frames.values() for arm in arms_of(frame))
        column = next(iter(runs.values())).column(str(key["metric"]))
        cells = {
            family: {str(row["arm"]): _cell(row) for row in rows_of(frame)}
            for family, frame in frames.items()
        }
        rows = [[arm, *(cells[family].get(arm, "–") for family in runs)] for arm in arms]
        yield Board(title_of(column, key), rows)


def winners(runs: Runs, by: str, keys: Sequence[Mapping[str, object]]) -> list[list[str]]:
    """Return rows of metric, part, and the arms of rank 1 in each family."""
    rows = []
    for key in keys:
        column = next(iter(runs.values())).column(str(key["metric"]))
        frames = {
            family: where(table(tables, "leaderboard_winners"), by=by, **key)
            for family, tables in runs.items()
        }
        parts = dict.fromkeys(
            part for frame in frames.values() for (part,) in unique(frame, "part")
        )
        for part in parts:
            best = [rows_of(where(frame, part=part)) for frame in frames.values()]
            cells = [_names(str(of_part[0]["arms"])) if of_part else "–" for of_part in best]
            rows.append([title_of(column, key), str(part), *cells])
    return rows


def winner_lines(tables: Tables) -> Iterator[str]:
    """Yield a line for each metric of the figure: the arms of rank 1 over all pairs."""
    for key in FIGURE:
        for row in rows_of(where(table(tables, "leaderboard_winners"), by="all", **key)):
            suites = "" if row["suites"] == DEFAULT else f" of {row['suites']}"
            title = title_of(tables.column(str(key["metric"])), key)
            yield f"best of {row['n_arms']} arms{suites} in {title}: {row['arms']}"


class Best(NamedTuple):
    """The best arms for a use on one family."""

    first: Row
    """Row of the arm of rank 1 with the best value, over all strategies."""
    arms: list[str]
    """All arms of rank 1 under its strategy, the first one first."""
    n_arms: int
    """Number of arms that are compared."""


def best_of(use: Use, tables: Tables) -> Best | None:
    """Return the best arms for a use; None without ranks."""
    column = tables.column(str(use.key["metric"]))
    ranked = [row for row in rows_of(of_metric(tables, use.key)) if row["rank"] is not None]
    if not ranked:
        return None
    sign = -1 if column.better == "lower" else 1
    first = max((row for row in ranked if row["rank"] == 1), key=lambda r: sign * _number(r))
    same = [row for row in ranked if row["strategy"] == first["strategy"]]
    tied = [str(row["arm"]) for row in same if row["rank"] == 1 and row is not first]
    return Best(first, [str(first["arm"]), *tied], len(same))


def recommendation(use: Use, family: str, tables: Tables) -> str | None:
    """Return a sentence on the best arms for a use on one family; None without ranks."""
    best = best_of(use, tables)
    if best is None:
        return None
    first, label = best.first, tables.column(str(use.key["metric"])).label
    strategy = "" if first["strategy"] is None else f" with `{first['strategy']}`"
    text = f"`{family}`: `{first['arm']}`{strategy} ({label} {interval(first)}"
    text += f", best of {best.n_arms} arms)" if best.n_arms > 1 else ", the only arm)"
    costs = {str(row["arm"]): row for row in tables.rows("leaderboard_arms")}
    if len(best.arms) == 1:
        return f"{text}; it reads {costs[best.arms[0]]['reads']}."
    cheapest = min(best.arms, key=lambda a: (len(_reads(costs[a])), _number(costs[a], "seconds")))
    others = ", ".join(f"`{arm}`" for arm in best.arms[1:])
    return (
        f"{text}, tied with {others}. The cheapest of these, `{cheapest}`, reads "
        f"{costs[cheapest]['reads']}."
    )


def best_everywhere(use: Use, runs: Runs) -> str:
    """Return a sentence on the arms that are best on every family that has the metric."""
    best = [set(of_run.arms) for of_run in (best_of(use, t) for t in runs.values()) if of_run]
    shared = sorted(set.intersection(*best)) if best else []
    if not shared:
        return "No arm is best, or tied for best, on every family."
    return f"Best, or tied for best, on every family: {', '.join(f'`{arm}`' for arm in shared)}."


def against_first(family: str, tables: Tables, k: int) -> str | None:
    """Return a sentence on the arms that beat the first arm in off rate at ``k`` partners.

    None if no other arm has the metric.
    """
    rows = rows_of(of_metric(tables, {"metric": OFF_RATE, "k": k}))
    if len(rows) < 2:
        return None
    first, place = rows[0]["against"], f"On `{family}`"
    partners = "one partner" if k == 1 else f"{k} partners"
    better = [row for row in rows if row["difference_low"] is not None
              and _number(row, "difference_low") > 0]  # fmt: skip
    if not better:
        return f"{place}, no arm is better than `{first}` at {partners} by its paired interval."
    better.sort(key=lambda row: -_number(row, "difference"))
    arms = ", ".join(f"`{row['arm']}` by {interval(row, 'difference')}" for row in better)
    return f"{place}, these arms are better than `{first}` at {partners}: {arms}."


def pair_difference(tables: Tables, family: str, layers: str, arm: str, k: int) -> str | None:
    """Return a sentence on the difference of an arm from the first arm on one pair, in off rate.

    None if the run lacks the arm or the pair.
    """
    key = {"by": "pair", "part": layers, "metric": OFF_RATE, "k": k, "arm": arm}
    rows = rows_of(of_metric(tables, key))
    if not rows or rows[0]["difference_low"] is None or rows[0]["against"] == arm:
        return None
    (row,) = rows
    beats = "beats" if _number(row, "difference_low") > 0 else "does not beat"
    return (
        f"On `{family}` {layers}, top-{k} of `{arm}` {beats} top-{k} of `{row['against']}` in off "
        f"rate (minus that of {k} random targets): difference {interval(row, 'difference')}."
    )


def leaderboard(tables: Tables) -> Figure | None:
    """Metrics of each arm over all pairs, with intervals; blue: rank 1."""
    shown = [(key, of_metric(tables, key)) for key in FIGURE]
    shown = [(key, frame) for key, frame in shown if len(frame)]
    if not shown:
        return None
    arms = arms_of(table(tables, "leaderboard_arms"))
    rows = math.ceil(len(shown) / ACROSS)
    columns = math.ceil(len(shown) / rows)
    figure, axes = panels(columns, 0.9 + 0.17 * len(arms), rows)
    for number, (axis, (key, frame)) in enumerate(zip(axes, shown, strict=False)):
        frame = frame.rename(columns={"low": "value_low", "high": "value_high"})
        frame = frame.set_index("arm").reindex(arms).reset_index()
        colours = [BEST if row["rank"] == 1 else OTHER for row in rows_of(frame)]
        dots(axis, frame, ["" for _ in arms] if number % columns else arms, "value", colours)
        axis.set_title(title_of(tables.column(str(key["metric"])), key))
    for axis in axes[len(shown) :]:
        axis.axis("off")
    return figure


def interval(row: Row, name: str = "value") -> str:
    """Return a value with its interval in brackets."""
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    text = f"{_number(row, name):.3f}"
    if row[ends[0]] is None:
        return text
    return f"{text} [{_number(row, ends[0]):.3f}, {_number(row, ends[1]):.3f}]"


def _cell(row: Row) -> str:
    """Return the value of an arm with its interval, and its rank in parentheses."""
    if row["value"] is None:
        return "–"
    return interval(row) + ("" if row["rank"] is None else f" ({row['rank']})")


def _names(arms: str) -> str:
    return ", ".join(f"`{arm}`" for arm in arms.split(", "))


def _number(row: Row, name: str = "value") -> float:
    value = row[name]
    return math.nan if value is None else float(value)


def _reads(row: Row) -> list[str]:
    return str(row["reads"]).split(", ")

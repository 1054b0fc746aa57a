"""Results of the evaluation ``verify`` in the terminal: tables, a sentence and counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from saematch.core.pairs import DEFAULT
from saematch.core.tables import Row, Tables, rows_of
from saematch.evaluate.verify_tables import HINDSIGHT, LEARNED, NEAR_MISS
from saematch.report.cells import half_width, pair_label, pairs_of
from saematch.report.frames import arms_of, numbers, table, values_of, where
from saematch.report.text_tables import TextTable

REFERENCES = {NEAR_MISS: "near\nmiss", LEARNED: "learned", HINDSIGHT: "hindsight"}
"""Headings of the controls and ceilings that ``verify`` lists as arms."""
METRICS = ("off_rate", "effect")
MANY = 5
"""Number of partners in the sentence, if an arm has so many."""
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 10: "ten", 20: "twenty"}
FINDINGS = {
    "passes": "pass",
    "fails": "fail",
    "too few events": "with too few events",
    "no partner": "without a partner",
}
"""Findings on single features, and their words after a number of features."""


class _Cell(NamedTuple):
    """Column of a terminal table."""

    heading: str
    arm: str
    k: int
    suffix: str = ""
    """Ending of the metric's column: ``_random`` for the random targets of an arm."""


def removals(tables: Tables) -> pd.DataFrame:
    """Return the rows of ``verify`` for features that were removed, sampled by feature."""
    return where(table(tables, "verify"), sampling="feature", edit="remove")


def matched_arms(frame: pd.DataFrame) -> list[str]:
    """Return the arms of a table of ``verify``, without the controls and ceilings."""
    return [arm for arm in arms_of(frame) if arm not in REFERENCES]


def sentences(tables: Tables) -> Iterator[str]:
    """Yield one sentence for each pair of suites on the share of features that switch off.

    With several pairs of layers its numbers are means over the pairs.
    """
    rows = removals(tables)
    suites = {pair.suites: list(pair.columns().items())[::2] for pair in pairs_of(rows)}
    for columns in suites.values():
        of_suites = where(rows, **dict(columns))
        if matched_arms(of_suites):
            yield _sentence(of_suites)


def _sentence(rows: pd.DataFrame) -> str:
    arms = matched_arms(rows)
    best = where(rows, arm=arms[0], k=1)
    pairs = pairs_of(rows)
    label = "" if pairs[0].suites == DEFAULT else f" of {pairs[0].suites}"
    start = f"Over {len(pairs)} pairs{label}, removing a feature"
    if len(pairs) == 1:
        start = f"Removing a feature of {pairs[0].source.name}"
    parts = [
        (f"its {arms[0]} partner", numbers(best, "off_rate")),
        ("a random feature", numbers(best, "off_rate_random")),
    ]
    several = rows[(rows["k"] > 1) & rows["arm"].isin(arms)]
    if len(several):
        k = MANY if MANY in values_of(several, "k") else int(several["k"].max())
        arm = arms_of(where(several, k=k))[0]
        off_rates = numbers(where(several, k=k, arm=arm), "off_rate")
        parts.append((f"one of its {WORDS.get(k, k)} best {arm} partners", off_rates))
    parts.append(("some feature", numbers(where(rows, arm=HINDSIGHT), "off_rate")))
    means = [(name, values.mean()) for name, values in parts if len(values)]
    shares = [f"{name} in {_percent(mean)}" for name, mean in means if not math.isnan(mean)]
    shares[0] += " of the events"
    return f"{start} switches off {', '.join(shares[:-1])}, and {shares[-1]}."


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def verify_tables(tables: Tables, all_ks: bool = False) -> Iterator[TextTable]:
    """Yield a table for off rate and for effect: pairs by arms, controls and ceilings.

    An arm with several partners has a column for the smallest and the largest number of partners,
    or with ``all_ks`` for all of them.
    """
    rows = removals(tables)
    if not matched_arms(rows):
        return
    cells = _cells(rows, all_ks)
    for metric in METRICS:
        title = f"Verify, features removed: {tables.column(metric).label} ± half of the interval"
        lines = []
        for pair in pairs_of(rows):
            of_pair = {(r["arm"], r["k"]): r for r in rows_of(where(rows, **pair.columns()))}
            texts = (_text(of_pair.get((c.arm, c.k), {}), metric + c.suffix) for c in cells)
            lines.append([pair_label(pair), *texts])
        yield TextTable(title, [cell.heading for cell in cells], lines)


def _cells(rows: pd.DataFrame, all_ks: bool) -> list[_Cell]:
    """Return the columns of a table."""
    arms = matched_arms(rows)
    cells = []
    for arm in arms:
        ks = sorted(values_of(where(rows, arm=arm), "k"))
        for k in ks if all_ks else dict.fromkeys([ks[0], ks[-1]]):
            cells.append(_Cell("\n".join([*arm.split("_"), f"k={k}"]), arm, k))
    cells.append(_Cell("random\ntarget", arms[0], 1, "_random"))
    present = arms_of(rows)
    return cells + [_Cell(name, arm, 1) for arm, name in REFERENCES.items() if arm in present]


def _text(row: Row, metric: str) -> str:
    """Return ``.23±.02``, without the interval if there is none, or a dash without a value."""
    value, low, high = (row.get(name) for name in (metric, f"{metric}_low", f"{metric}_high"))
    if value is None:
        return "–"
    half = half_width(value, low, high)
    return _decimals(float(value)) + ("" if half is None else f"±{_decimals(half)}")


def _decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".")  # the sum turns -0.0 into 0.0


def verify_lines(tables: Tables) -> Iterator[str]:
    """Yield the sentences, the numbers of events, and the findings on chosen features."""
    yield from sentences(tables)
    counts = table(tables, "verify_counts")
    if len(counts):
        yield _events(counts)
    features = table(tables, "verify_features")
    for arm in arms_of(features):
        of_arm = where(features, arm=arm)
        numbers_of = ((len(where(of_arm, finding=name)), text) for name, text in FINDINGS.items())
        parts = ", ".join(f"{n} {text}" for n, text in numbers_of if n)
        yield f"chosen features, {arm}: {parts}"


def _events(counts: pd.DataFrame) -> str:
    sums = {str(name): int(counts[name].sum()) for name in counts if str(name).startswith("n_")}
    pairs = pairs_of(counts)
    scope = f"over {len(pairs)} pairs" if len(pairs) > 1 else f"layers {pair_label(pairs[0])}"
    return (
        f"events of verify, {scope}: {sums['n_events']:,} by feature, "
        f"{sums['n_token_events']:,} by token; of {sums['n_features']:,} features "
        f"{sums['n_below_floor']:,} are below the floor and {sums['n_without_events']:,} have no "
        "event"
    )

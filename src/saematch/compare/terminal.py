"""Terminal output of ``saematch compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

import numpy as np

from saematch.compare.by_layer import agreement_by_arm
from saematch.compare.comparison import SUITES, Comparison, described, shown
from saematch.compare.plan import metrics_of, shown_rows, unique_values
from saematch.compare.runs import RunFolder, Value
from saematch.compare.shared import shared_inputs
from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT
from saematch.core.safe_text import visible
from saematch.core.tables import Row, rows_of
from saematch.report.frames import arms_of, numbers, unique, values_of, where
from saematch.report.style import BASELINES
from saematch.report.text_tables import TextTable, console, print_table

N_METRICS = 3
"""Number of metrics that are printed; ``comparison.csv`` has all."""
MAX_ROWS = 60
MAX_VALUES = 8
"""Largest number of values of a parameter that are all listed."""
HEADS = {
    "matching_score": "matching\nscore",
    "explained_variance": "explained\nvariance",
    "delta_loss": "change in\nloss, nats",
    "mse_W_dec": "MSE W_dec",
    "recall": "recall",
    "jaccard": "jaccard",
}
"""Headings of metrics that are shorter than their labels."""


def print_comparison(comparison: Comparison, metrics: Sequence[str] = ()) -> None:
    """Print the compared runs, the main numbers, the excluded runs and the paths of the files."""
    printer = console()

    def say(text: str) -> None:
        printer.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    printer.print(f"\n[bold]{headline(comparison)}[/]", highlight=False, soft_wrap=True)
    for line in findings(comparison):
        say(line)
    chosen = metrics_of(comparison, metrics)[:N_METRICS]
    lines = list(_lines(comparison, chosen))
    print_table(_table(comparison, chosen, lines[:MAX_ROWS]), printer)
    if len(lines) > MAX_ROWS:
        say(f"and {len(lines) - MAX_ROWS} more lines, in comparison.csv")
    for line in baselines(comparison, chosen):
        say(line)
    if {"explained_variance", "delta_loss"} & set(chosen):
        say("Each arm is shown under its first strategy; comparison.csv and the figures have all.")
    if len(comparison.by_layer.agreement):
        agreement = agreement_table(comparison)
        print_table(agreement._replace(rows=agreement.rows[:MAX_ROWS]), printer)
        if len(agreement.rows) > MAX_ROWS:
            say(f"and {len(agreement.rows) - MAX_ROWS} more lines, in agreement.csv")
    if comparison.left_out:
        printer.print(f"\n[bold]Left out: {len(comparison.left_out)}[/]", highlight=False)
    for run in comparison.left_out:
        say(f"{run.folder} ({run.state}): {' '.join(run.reason.split())}")
    say("")
    files = ("comparison.csv", "comparison.parquet", "runs.csv", "by_layer.csv", "agreement.csv")
    for name in ("index.html", *files, "figures"):
        if (comparison.out / name).exists():
            say(f"written: {comparison.out / name}")


def headline(comparison: Comparison) -> str:
    """Return the number of runs that are compared and excluded."""
    n, n_excluded = len(comparison.compared), len(comparison.left_out)
    return f"{n} run{'' if n == 1 else 's'} compared, {n_excluded} left out"


def findings(comparison: Comparison) -> Iterator[str]:
    """Yield lines on shared inputs, swept settings, the best run, and further remarks."""
    shared = shared_inputs([run.results for run in comparison.compared if run.results is not None])
    if shared:
        yield shared
    for name in comparison.parameters:
        values = [brief(value) for value in unique_values(comparison, name)]
        several = f"{len(values)} values, {values[0]} to {values[-1]}"
        yield f"{name}: {'; '.join(values) if len(values) <= MAX_VALUES else several}"
    if not comparison.parameters:
        yield "no override differs between these runs"
    for objective in comparison.objectives:
        best = comparison.best(objective)
        if best is None:
            yield f"no run has {objective.metric}, which the sweep was to {objective.goal}"
            continue
        run, value = best
        settings = described(run, comparison.parameters)
        best_run = f"run {run.name}" + (f" ({settings})" if settings else "")
        line = f"best by {objective.metric} ({objective.goal}): {best_run}: {number(value)}"
        yield line + _rivals(comparison, objective.metric, run, value)
    yield from comparison.notes
    if comparison.undrawn:
        yield comparison.undrawn


def _rivals(comparison: Comparison, metric: str, best: RunFolder, value: float) -> str:
    """Return the interval of the best value, and the runs whose intervals overlap it."""
    name, _, arm = metric.partition("/")
    rows = where(shown_rows(comparison, name), arm=arm)
    of_best = rows_of(where(rows[np.isclose(numbers(rows, "value"), value)], run=best.name))
    if not of_best or of_best[0]["low"] is None:
        return ""
    low, high = of_best[0]["low"], of_best[0]["high"]
    same = where(rows, strategy=of_best[0]["strategy"], suites=of_best[0][SUITES])
    others = same[(same["low"] <= high) & (same["high"] >= low) & (same["run"] != best.name)]
    text = f" [{number(low)}, {number(high)}]"
    names = ", ".join(values_of(others, "run"))
    return text + (f"; runs whose intervals overlap this one: {names}" if names else "")


def baselines(comparison: Comparison, metrics: Sequence[str]) -> Iterator[str]:
    """Yield a line for each baseline with the range of its values over the runs."""
    arms = arms_of(comparison.means)
    if not set(arms) - set(BASELINES):
        return
    for arm in filter(BASELINES.__contains__, arms):
        ranges = []
        for metric in metrics:
            values = numbers(where(shown_rows(comparison, metric), arm=arm), "value")
            if len(values):
                ends = dict.fromkeys((number(values.min()), number(values.max())))
                ranges.append(f"{comparison.column(metric).with_unit} {' to '.join(ends)}")
        yield f"{arm}: {', '.join(ranges)}"


def agreement_table(comparison: Comparison) -> TextTable:
    """Return a table with a row for each two runs, a column for each arm, and chance."""
    means = agreement_by_arm(comparison.by_layer.agreement)
    arms = arms_of(means)
    rows = []
    for run, other in unique(means, "run", "against_run"):
        of_both = where(means, run=run, against_run=other)
        by_arm = dict(zip(of_both["arm"], of_both["agreement"], strict=True))
        cells = [number(by_arm[arm]) if arm in by_arm else "–" for arm in arms]
        rows.append([run, other, *cells, number(of_both["chance"].mean())])
    title = "Agreement of matches: share of equal entries, mean over pairs of SAEs"
    return TextTable(title, [*arms, "by chance"], rows, ("run", "and run"))


def brief(value: Value) -> str:
    """Return a parameter's value as text, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def number(value: object) -> str:
    """Return a number as text with a few digits."""
    plain = float(str(value))
    return f"{plain:.3f}" if plain == 0 or 1e-2 <= abs(plain) < 1e4 else f"{plain:.3g}"


def with_interval(row: Row, between: str = " ") -> str:
    """Return a value and its interval, if it has one."""
    if row["low"] is None or row["high"] is None:
        return number(row["value"])
    return f"{number(row['value'])}{between}[{number(row['low'])}, {number(row['high'])}]"


def _lines(comparison: Comparison, metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each run, suite and arm; baselines only if there are no other arms."""
    arms = arms_of(comparison.means)
    arms = [arm for arm in arms if arm not in BASELINES] or arms
    by_metric = [_first_rows(comparison, metric) for metric in metrics]
    for run in comparison.compared:
        settings = [brief(run.parameters[name]) for name in comparison.parameters]
        of_run = where(comparison.means, run=run.name)
        for suites, arm in unique(of_run, SUITES, "arm"):
            if arm not in arms:
                continue
            rows = [cells.get((run.name, suites, arm)) for cells in by_metric]
            name = arm if suites == DEFAULT else f"{arm}, {suites}"
            cells = [with_interval(row, "\n") if row else "–" for row in rows]
            yield [run.name, name, *settings, *cells]


def _first_rows(comparison: Comparison, metric: str) -> dict[tuple, Row]:
    """Return the first shown row of a metric by run, suites and arm."""
    keys = ["run", SUITES, "arm"]
    rows = rows_of(shown_rows(comparison, metric).drop_duplicates(keys))
    return {tuple(row[key] for key in keys): row for row in rows}


def _table(comparison: Comparison, metrics: Sequence[str], lines: list[list[str]]) -> TextTable:
    headings = [name.replace(".", ".\n") for name in comparison.parameters]
    headings += [_heading(comparison.column(metric)) for metric in metrics]
    return TextTable("", headings, lines, ("run", "arm"))


def _heading(column: Column) -> str:
    return HEADS.get(column.name) or "\n".join(wrap(column.with_unit, 12))

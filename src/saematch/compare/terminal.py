"""What ``saematch compare`` says at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saematch.compare.comparison import SUITES, Comparison, described, shown
from saematch.compare.plan import metrics_of, shown_rows, unique_values
from saematch.compare.runs import Value
from saematch.core.columns import column_of
from saematch.core.pairs import DEFAULT
from saematch.core.safe_text import visible
from saematch.core.tables import Row
from saematch.report.style import BASELINES, arms_of, unique, where

N_METRICS = 3
"""As many fit a terminal beside the parameters."""
MAX_ROWS = 60
MAX_VALUES = 8
"""Of a parameter, named one by one."""
HEADS = {
    "matching_score": "matching\nscore",
    "explained_variance": "explained\nvariance",
    "delta_loss": "change in\nloss, nats",
    "mse_W_dec": "MSE W_dec",
    "judge_score": "judge\nscore",
}


def print_comparison(comparison: Comparison, metrics: Sequence[str] = ()) -> None:
    """Print what was compared, the main numbers, what was left out, and where everything lies."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    def say(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    console.print(f"\n[bold]{headline(comparison)}[/]", highlight=False, soft_wrap=True)
    for line in findings(comparison):
        say(line)
    chosen = metrics_of(comparison, metrics)[:N_METRICS]
    rows = list(_lines(comparison, chosen))
    console.print(_table(comparison, chosen, rows[:MAX_ROWS]))
    if len(rows) > MAX_ROWS:
        say(f"and {len(rows) - MAX_ROWS} more lines, in comparison.csv")
    for line in baselines(comparison, chosen):
        say(line)
    if {"explained_variance", "delta_loss"} & set(chosen):
        say("Of strategies the first of each arm; all are in comparison.csv and in the figures.")
    if comparison.left_out:
        console.print(f"\n[bold]Left out: {len(comparison.left_out)}[/]", highlight=False)
    for run in comparison.left_out:
        say(f"{run.folder} ({run.state}): {' '.join(run.reason.split())}")
    say("")
    for name in ("index.html", "comparison.csv", "comparison.parquet", "runs.csv", "figures"):
        if (comparison.out / name).exists():
            say(f"written: {comparison.out / name}")


def headline(comparison: Comparison) -> str:
    """Say how many runs are compared."""
    n, others = len(comparison.compared), len(comparison.left_out)
    return f"{n} run{'' if n == 1 else 's'} compared, {others} left out"


def findings(comparison: Comparison) -> Iterator[str]:
    """Say which settings were swept, which run is best, and what a reader has to know."""
    for name in comparison.parameters:
        values = [brief(value) for value in unique_values(comparison, name)]
        several = f"{len(values)} values, {values[0]} to {values[-1]}"
        yield f"{name}: {'; '.join(values) if len(values) <= MAX_VALUES else several}"
    if not comparison.parameters:
        yield "no setting that was given differs between these runs"
    for objective in comparison.objectives:
        best = comparison.best(objective)
        if best is None:
            yield f"no run has {objective.metric}, which the sweep was to {objective.goal}"
            continue
        run, value = best
        settings = described(run, comparison.parameters)
        about = f"run {run.name}" + (f" ({settings})" if settings else "")
        yield f"best by {objective.metric} ({objective.goal}): {about}: {number(value)}"
    yield from comparison.notes
    if comparison.undrawn:
        yield comparison.undrawn


def baselines(comparison: Comparison, metrics: Sequence[str]) -> Iterator[str]:
    """Say for each baseline between which values it lies in all the runs."""
    arms = arms_of(comparison.rows)
    for arm in [arm for arm in arms if arm in BASELINES] if set(arms) - set(BASELINES) else []:
        said = []
        for metric in metrics:
            rows = where(shown_rows(comparison, metric), arm=arm)
            values = [float(row["value"] or 0) for row in rows]
            if values:
                ends = dict.fromkeys((number(min(values)), number(max(values))))
                said.append(f"{column_of(metric).with_unit} {' to '.join(ends)}")
        yield f"{arm}: {', '.join(said)}"


def brief(value: Value) -> str:
    """Return a parameter's value, a number in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def number(value: object) -> str:
    """Return a number in a few digits."""
    known = float(str(value))
    return f"{known:.3f}" if known == 0 or 1e-2 <= abs(known) < 1e4 else f"{known:.3g}"


def with_interval(row: Row, between: str = " ") -> str:
    """Return a value and its interval, if it has one."""
    if row["low"] is None or row["high"] is None:
        return number(row["value"])
    return f"{number(row['value'])}{between}[{number(row['low'])}, {number(row['high'])}]"


def _lines(comparison: Comparison, metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each run, set and arm; of baselines only if there is nothing else."""
    by_metric = {metric: shown_rows(comparison, metric) for metric in metrics}
    arms = arms_of(comparison.rows)
    arms = [arm for arm in arms if arm not in BASELINES] or arms
    for run in comparison.compared:
        settings = [brief(run.parameters[name]) for name in comparison.parameters]
        of_run = where(comparison.rows, run=run.name)
        for of_set, arm in unique(of_run, SUITES, "arm"):
            if arm not in arms:
                continue
            found = [
                where(rows, run=run.name, suites=of_set, arm=arm) for rows in by_metric.values()
            ]
            name = arm if of_set == DEFAULT else f"{arm}, {of_set}"
            cells = [with_interval(rows[0], "\n") if rows else "–" for rows in found]
            yield [run.name, *settings, name, *cells]


def _table(comparison: Comparison, metrics: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("run", *comparison.parameters, "arm"):
        table.add_column(escape(name.replace(".", ".\n")), overflow="fold")
    for metric in metrics:
        table.add_column(HEADS.get(metric, metric), justify="right", no_wrap=True)
    for cells in lines:
        table.add_row(*map(escape, cells))
    return table

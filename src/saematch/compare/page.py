"""The page of a comparison: figures, the numbers behind them, and every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from saematch.compare.comparison import SUITES, Comparison, shown
from saematch.compare.figures import cell_look
from saematch.compare.plan import shown_rows
from saematch.compare.terminal import findings, headline, number, with_interval
from saematch.core.files import replacing
from saematch.core.pairs import DEFAULT
from saematch.core.tables import rows_of
from saematch.report.frames import unique, where


def write_page(comparison: Comparison, metrics: Sequence[str], path: Path) -> None:
    """Write the page; its figures lie beside it."""
    with replacing(path) as part:
        part.write_text("\n".join(_page(comparison, metrics)) + "\n", encoding="utf-8")


def _page(comparison: Comparison, metrics: Sequence[str]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>saematch: comparison</title>'
    yield f"<style>{_STYLE}</style><body><h1>{escape(headline(comparison))}</h1><ul>"
    yield from (f"<li>{escape(line)}</li>" for line in findings(comparison))
    yield "</ul><p>Values are means over a run's layer pairs, a judge's over its judgements, "
    yield "in brackets with their intervals. "
    yield 'All numbers: <a href="comparison.csv">comparison.csv</a>, '
    yield '<a href="comparison.parquet">comparison.parquet</a>; '
    yield 'all runs: <a href="runs.csv">runs.csv</a>.</p>'
    for metric in metrics:
        yield f"<h2>{escape(comparison.column(metric).with_unit)}</h2>"
        if metric in comparison.figures:
            name = escape(f"figures/{comparison.figures[metric].name}")
            yield f'<img src="{name}" alt="{escape(comparison.column(metric).with_unit)}">'
        yield from _numbers(comparison, metric)
    yield "<h2>Runs</h2>"
    yield from _runs(comparison)
    yield "</body></html>"


def _numbers(comparison: Comparison, metric: str) -> Iterator[str]:
    """Yield a table of runs and what the metric is of."""
    rows = shown_rows(comparison, metric)
    cells = unique(rows, SUITES, "arm", "strategy")
    heads = []
    for of_set, arm, strategy in cells:
        label = str(cell_look(arm, strategy, comparison.means)["label"])
        heads.append(label if of_set == DEFAULT else f"{label}, {of_set}")
    lines = []
    for run in comparison.compared:
        settings = [shown(run.parameters[name]) for name in comparison.parameters]
        line = [run.name, *settings]
        for of_set, arm, strategy in cells:
            of_cell = {"run": run.name, SUITES: of_set, "arm": arm, "strategy": strategy}
            found = where(rows, **of_cell)
            line.append(with_interval(rows_of(found)[0]) if len(found) else "–")
        lines.append(line)
    yield from _table(["run", *comparison.parameters, *heads], lines)


def _runs(comparison: Comparison) -> Iterator[str]:
    rows = comparison.run_rows()
    lines = []
    for row in rows:
        plain = {name: "–" if value is None else str(value) for name, value in row.items()}
        plain |= {"git_commit": plain["git_commit"][:10], "code": plain["code"][:10]}
        plain |= {"compared": "yes" if row["compared"] else "no"}
        plain |= {
            objective.metric: number(value)
            for objective in comparison.objectives
            if (value := row[objective.metric]) is not None
        }
        lines.append(list(plain.values()))
    yield from _table(list(rows[0]), lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr></thead><tbody>"
    for line in lines:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
    yield "</tbody></table></div>"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;"
    "color:#222}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}td,th{"
    "border-bottom:1px solid #ddd;padding:.3em .7em;text-align:left;vertical-align:top}"
    "img{max-width:100%}h2{margin-top:2em;border-top:2px solid #eee;padding-top:1em}"
    "a{color:#0072b2}"
)

"""Write the results of runs with ``verify`` into a page: ``make verify-page``.

python -m saematch.report.verify_page PAGE MARK RUN [RUN ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.pairs import pair_of
from saematch.core.results import Results
from saematch.core.tables import Tables, rows_of
from saematch.report.cells import pair_label
from saematch.report.frames import table, where
from saematch.report.text_tables import TextTable
from saematch.report.verify import sentences, verify_tables


def write_results(page: Path, mark: str, runs: Sequence[Path]) -> None:
    """Replace the text between the page's marks ``mark: begin`` and ``mark: end``.

    Raises ``InputError`` for a page without the marks and for a folder without results.
    """
    begin, end = (f"<!-- {mark}: {name} -->\n" for name in ("begin", "end"))
    content = page.read_text(encoding="utf-8")
    if begin not in content or end not in content.partition(begin)[2]:
        raise InputError(f"{page} has no lines {begin.strip()} and {end.strip()}: add both")
    before, _, rest = content.partition(begin)
    after = rest.partition(end)[2]
    sections = [section for run in runs for section in (*_section(run), "")]
    with replacing(page) as part:
        part.write_text(before + begin + "\n".join(sections) + end + after, encoding="utf-8")


def _section(run: Path) -> Iterator[str]:
    results = Results.load(run / "results.json")
    tables = results.tables
    counts = table(tables, "verify_counts")
    if counts.empty:
        raise InputError(f"{run} has no results of the evaluation verify")
    n_texts, n_tokens = (int(counts[name].iloc[0]) for name in ("n_texts", "n_calibration_tokens"))
    yield f"**{run.name}**: {n_texts:,} evaluation texts, {n_tokens:,} calibration tokens."
    yield ""
    for sentence in sentences(tables):
        yield sentence
        yield ""
    off_rates = next(verify_tables(tables, all_ks=True))
    yield from _markdown(off_rates)
    yield ""
    yield from _difference(tables)


def _markdown(of_metric: TextTable) -> Iterator[str]:
    headings = [heading.replace("\n", " ") for heading in of_metric.headings]
    yield of_metric.title.partition(": ")[2].capitalize() + ":"
    yield ""
    yield f"| layers | {' | '.join(headings)} |"
    yield "| --- |" + " ---: |" * len(headings)
    for row in of_metric.rows:
        yield f"| {' | '.join(row)} |"


K = 5
"""Number of partners for which arms are compared."""


def _difference(tables: Tables) -> Iterator[str]:
    """Yield the paired differences of two arms with five partners, if the run has them."""
    rows = where(table(tables, "verify_contrasts"), sampling="feature", k=K)
    texts = [
        f"{row['arm']} minus {row['against_arm']}, {pair_label(pair_of(row))}: "
        f"{row['off_rate_difference']:+.3f} ({row['off_rate_difference_low']:+.3f} to "
        f"{row['off_rate_difference_high']:+.3f})"
        for row in rows_of(rows)
    ]
    if texts:
        yield f"Differences in off rate with {K} partners, on the same events:"
        yield ""
        yield from (f"- {text}" for text in texts)


if __name__ == "__main__":
    write_results(Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]])

"""Speed and memory of the main work, as ratios against bounds or peers of the same run.

python benchmarks/bench.py [--rows NAME ...] [--repeats N] [--tiny] [--page FILE]
"""

from __future__ import annotations

import argparse
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import activity
import edited
import measures
import passes
import torch
import transport
from measures import FULL, TINY, Size
from measuring import Measured


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    ours: str
    """Measured work."""
    peer: str
    """Work or value that the measured work is compared with."""
    bound: float
    """Largest acceptable ratio."""
    measure: Callable[[Size], Measured]


ROWS = (
    Row("weights", "errors and norms of one pair, four arms, 16,384 x 2,304",
        "float32 product of the pair at D = 4,609, in blocks", 0.15, measures.weights),
    Row("weights_memory", "memory that the same errors and norms add",
        "memory of one SAE", 2.5, measures.weights_memory),
    Row("sinkhorn", "an iteration of Sinkhorn, 16,384 x 2,304, in blocks",
        "float32 product of the pair, in blocks", 1.4, transport.sinkhorn),
    Row("top_k", "20 best partners of each feature, 16,384 x 2,304",
        "float32 product of the pair at D = 2,304, in blocks", 1.2, measures.top_k),
    Row("pearson", "recording 32,768 tokens, L0 70, and correlations of one pair, once",
        "encoding by both SAEs", 1.5, activity.pearson),
    Row("written_share", "the same with the written shares of one pair, once",
        "encoding by both SAEs", 1.5, activity.written_share),
    Row("activity_memory", "memory that these written shares add", "1 GiB", 1.0, activity.memory),
    Row("skip_layers", "skip_layers on texts, with intervals",
        "whole model with plain hooks for each cell", 0.5, passes.skip_layers),
    Row("evaluation", "all splices on all texts",
        "blocks and heads that every method needs", 1.3, passes.evaluation),
    Row("contexts", "pass that keeps contexts",
        "forward passes and encoding", 2.0, passes.contexts),
    Row("one_pass", "one pass that records contexts and co-activation",
        "one pass for each of them", 1.0, passes.one_pass),
    Row("decoding", "decoding at width 8,192",
        "decoding at width 1,024, same L0", 1.5, measures.decoding),
    Row("edits", "3,328 edited tokens through one block",
        "the same number of tokens through the block", 1.3, edited.edits),
    Row("edits_naive", "one edited token through one block",
        "whole model with hooks on a copy of the text", 0.2, edited.naive),
    Row("start_up", "saematch --help", "import torch", 2.0, measures.start_up),
    Row("run_memory", "peak memory of a run on 100 texts of each kind",
        "peak memory on 25 texts", 1.1, measures.run_memory),
    Row("verify_memory", "peak memory of a run that verifies, 100 texts of each kind",
        "peak memory on 25 texts", 1.1, measures.verify_memory),
    Row("verify", "verify on all pairs, measured once", "the demo, measured once", 3.0,
        measures.verify),
    Row("demo", "the demo, measured once", "bound in seconds", 1.0, measures.demo),
)  # fmt: skip
MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")
"""Lines in the page before and after the table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rows; return exit code 1 if a row failed. A missed bound is not a failure."""
    options = parse(arguments)
    size = TINY if options.tiny else FULL
    size = replace(size, repeats=options.repeats or size.repeats)
    rows = [row for row in ROWS if row.name in (options.rows or [r.name for r in ROWS])]
    print(conditions(size) + "\n", flush=True)
    print(f"{'row':<15} {'measured':>10} {'against':>10} {'ratio':>8} {'bound':>7}", flush=True)
    results = {row: result(row, size) for row in rows}
    if options.page and not options.rows:
        write_page(options.page, results, size)
    return int(any(isinstance(measured, Exception) for measured in results.values()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="rows: " + "; ".join(f"{row.name} ({row.ours} / {row.peer})" for row in ROWS),
    )
    parser.add_argument("--rows", nargs="+", choices=names, metavar="NAME", help="only these rows")
    parser.add_argument("--repeats", type=int, help="number of measurements for each median (5)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to check that rows work")
    parser.add_argument("--page", type=Path, help="page that receives the table of all rows")
    return parser.parse_args(arguments)


def result(row: Row, size: Size) -> Measured | Exception:
    """Measure and print one row. An error is printed too, so that the other rows still run."""
    try:
        with redirect_stdout(sys.stderr):  # progress bars
            measured = row.measure(size)
    except Exception as error:  # noqa: BLE001 - a failure is the row's result
        traceback.print_exc()
        print(f"{row.name:<15} FAILED: {error!r}", flush=True)
        return error
    values = f"{with_unit(measured.ours, measured):>10} {with_unit(measured.peer, measured):>10}"
    missed = "" if measured.ratio <= row.bound else "  MISSED"
    print(f"{row.name:<15} {values} {measured.ratio:8.3f} {row.bound:7.2f}{missed}", flush=True)
    return measured


def with_unit(value: float, measured: Measured) -> str:
    """Return the value with three digits and its unit."""
    return f"{value:.3g} {measured.unit}"


def conditions(size: Size) -> str:
    """Return date, processor, threads and versions of this measurement."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "numba"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {packages}; median of {size.repeats}"
    )


def processor() -> str:
    """Return the processor's name, as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def write_page(page: Path, results: dict[Row, Measured | Exception], size: Size) -> None:
    """Replace the table between the page's marks."""
    lines = ["| row | measured | against | ratio | bound |", "| --- | --- | --- | --- | --- |"]
    for row, measured in results.items():
        if isinstance(measured, Exception):
            lines.append(f"| `{row.name}` | {row.ours} | {row.peer} | failed | {row.bound} |")
            continue
        ours, peer = with_unit(measured.ours, measured), with_unit(measured.peer, measured)
        ratio = f"{measured.ratio:.3f}" + ("" if measured.ratio <= row.bound else " (missed)")
        ends = f"{row.peer}: {peer} | {ratio} | {row.bound}"
        lines.append(f"| `{row.name}` | {row.ours}: {ours} | {ends} |")
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    table = f"{conditions(size)}.\n\n" + "\n".join(lines) + "\n"
    page.write_text(before + MARKS[0] + table + MARKS[1] + after)


if __name__ == "__main__":
    sys.exit(main())

"""The command ``saematch export``: write matched features in formats of other tools."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saematch.app.configuration import whole_number
from saematch.core.errors import InputError
from saematch.core.files import check_path

if TYPE_CHECKING:
    from saematch.explorer.paths import Node
    from saematch.explorer.run_data import RunData

ENDINGS = {"parquet": "links.parquet", "csv": "links.csv", "graph": "graph.json",
           "group": "grouped.json", "neuronpedia": "neuronpedia.json"}  # fmt: skip
"""Default name of each format's file, in ``RUN/exports``."""


def main(words: Sequence[str]) -> None:
    """Write the export and print its path; ``InputError`` for what the run does not have."""
    options = _parser().parse_args(words)
    to = options.to or options.run / "exports" / ENDINGS[options.format]
    check_path("--to", to)
    from saematch.explorer.run_data import RunData

    run = RunData.open(options.run)
    if to.is_dir():
        raise InputError(f"{to} is a folder: name a file with --to")
    write: Callable[[RunData, argparse.Namespace, Path], str] = options.write
    message = write(run, options, to)
    sys.stdout.write(f"{message}\nwritten: {to}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch export",
        description="Write the matched features of a run in the format of another tool.",
        epilog="Examples: saematch export outputs/match/a csv --arm folded --pair 3-4; "
        "saematch export outputs/match/a graph --feature 7/42 --feature 7/43; "
        "saematch export outputs/match/a group graph.json. "
        "'saematch export RUN FORMAT --help' lists the options of a format.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that matched SAEs")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name in ("parquet", "csv"):
        table = formats.add_parser(
            name, help=f"all matched features with scores and effects, as {name}"
        )
        _add_arm(table, "links of this arm; may be repeated (default: all arms)", many=True)
        table.add_argument(
            "--pair", action="append", default=[], dest="pairs", metavar="3-4",
            help="links of this pair, wide/3-4 in a suite; may be repeated (default: all pairs)",
        )  # fmt: skip
        table.add_argument(
            "--top", type=partial(whole_number, 1), default=8,
            help="number of partners of each feature (default: 8)",
        )  # fmt: skip
        table.set_defaults(write=_write_links)
    graph = formats.add_parser(
        "graph", help="paths of features as an attribution graph of circuit-tracer"
    )
    graph.set_defaults(write=_write_graph)
    lists = formats.add_parser("neuronpedia", help="paths of features as lists of Neuronpedia")
    lists.set_defaults(write=_write_lists)
    for of_paths in (graph, lists):
        _add_arm(of_paths, "follow the matches of this arm (default: the first arm)")
        of_paths.add_argument(
            "--feature", action="append", required=True, dest="features", metavar="7/42",
            help="layer and number of a feature, wide/7/42 in a suite; may be repeated",
        )  # fmt: skip
    group = formats.add_parser(
        "group", help="your attribution graph of circuit-tracer, with matched features grouped"
    )
    group.add_argument("graph", type=Path, metavar="GRAPH", help="JSON file of the graph")
    _add_arm(group, "group by the matches of this arm (default: the first arm)")
    group.add_argument("--suite", help="suite of the graph's features (default: the first suite)")
    group.add_argument(
        "--scan", metavar="NAME", help="the graph's name of the run's model, if the names differ"
    )
    group.set_defaults(write=_write_group)
    for of_format in (*formats.choices.values(),):
        of_format.add_argument(
            "--to", type=Path, metavar="FILE", help="file to write (default: in RUN/exports)"
        )
    return parser


def _add_arm(parser: argparse.ArgumentParser, text: str, many: bool = False) -> None:
    if many:
        parser.add_argument("--arm", action="append", default=[], dest="arms", help=text)
    else:
        parser.add_argument("--arm", help=text)


def _write_links(run: RunData, options: argparse.Namespace, to: Path) -> str:
    from saematch.explorer.exports.table import links_table, save_table

    arms, pairs = run.chosen_arms(options.arms), run.chosen_pairs(options.pairs)
    table = links_table(run, arms, pairs, options.top)
    save_table(table.frame, to)
    n_links, best = len(table.frame), f"the best {options.top} of a feature"
    return f"{n_links} links; left out: {table.n_left_out} links that are not among {best}"


def _write_graph(run: RunData, options: argparse.Namespace, to: Path) -> str:
    from saematch.explorer.exports.graph import paths_graph, write_graph

    arm, features = _arm(run, options), _features(run, options)
    graph = paths_graph(run, arm, features)
    write_graph(graph, to)
    return f"{len(features)} paths under {arm}: {len(graph['nodes'])} nodes" + _hidden(graph)


def _write_group(run: RunData, options: argparse.Namespace, to: Path) -> str:
    from saematch.explorer.exports.graph import write_graph
    from saematch.explorer.exports.group import grouped, read_graph

    arm = _arm(run, options)
    if options.graph.resolve() == to.resolve():
        raise InputError(f"--to {to} is the graph itself: choose another file")
    grouping = grouped(run, arm, options.suite, read_graph(options.graph), options.scan)
    write_graph(grouping.graph, to)
    return (
        f"{grouping.n_groups} supernodes with {grouping.n_grouped} nodes under {arm}; not grouped: "
        f"{grouping.n_features - grouping.n_grouped} of {grouping.n_features} features, and "
        f"{grouping.n_other} other nodes; in earlier supernodes: {grouping.n_kept}"
        + _hidden(grouping.graph)
    )


def _write_lists(run: RunData, options: argparse.Namespace, to: Path) -> str:
    from saematch.core.files import write_json
    from saematch.explorer.exports.neuronpedia import paths_lists

    lists = paths_lists(run, _arm(run, options), _features(run, options))
    write_json(to, lists.bodies)
    left_out = f"left out: {lists.n_left_out} of SAEs without neuronpedia_id"
    return f"{lists.n_features} features in {len(lists.bodies)} requests; {left_out}"


def _arm(run: RunData, options: argparse.Namespace) -> str:
    return run.chosen_arms([options.arm] if options.arm else [])[0]


def _features(run: RunData, options: argparse.Namespace) -> list[Node]:
    from saematch.explorer.paths import parse_node

    return [parse_node(run, text) for text in dict.fromkeys(options.features)]


def _hidden(graph: dict) -> str:
    """Return a warning if the pages show only some of the pinned nodes."""
    from saematch.explorer.exports.graph import SHOWN

    n_pinned = len(graph["qParams"]["pinnedIds"])
    if n_pinned <= SHOWN:
        return ""
    return f"; Neuronpedia shows the first {SHOWN} of {n_pinned} pinned nodes"

"""The command ``saematch features``: print paths, partners and explanations of features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from saematch.app.configuration import whole_number


def main(words: Sequence[str]) -> None:
    """Print the features; ``InputError`` for a run, layer, feature or arm that is not there."""
    number = partial(whole_number, 0)
    parser = argparse.ArgumentParser(
        prog="saematch features",
        description="Print the results of a run for single features: explanation, activity, path "
        "through the layers, partners with scores and effects, and verdicts of the judge.",
        epilog="Example: saematch features outputs/match/a 7 42",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that matched SAEs")
    parser.add_argument("layer", type=number, metavar="LAYER", help="layer of the features")
    parser.add_argument(
        "features", nargs="+", type=number, metavar="FEATURE", help="numbers of the features"
    )
    parser.add_argument("--suite", help="suite of the features (default: the run's only suite)")
    parser.add_argument(
        "--arm", action="append", default=[], dest="arms",
        help="show the matches of this arm; may be repeated (default: all arms)",
    )  # fmt: skip
    options = parser.parse_args(words)
    from saematch.explorer.paths import Node
    from saematch.explorer.run_data import RunData
    from saematch.explorer.terminal import print_features

    run = RunData.open(options.run)
    key = run.sae(options.layer, options.suite)
    for feature in options.features:
        run.check_feature(key, feature)
    arms = run.chosen_arms(options.arms)
    print_features(run, [Node(key, feature) for feature in options.features], arms)

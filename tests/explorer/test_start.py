"""The features that a page offers first, against a run that is written by hand."""

import torch

from hand_run import write_hand_run, write_verified
from matches import of_dense
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.run_data import RunData
from saematch.explorer.start import verified_start

FIRST, SECOND = Pair.of_layers(0, 1), Pair.of_layers(1, 2)


def permutation(*targets):
    return of_dense(torch.eye(len(targets))[list(targets)])


def row(feature, finding, effect, arm="a"):
    return {"arm": arm, "feature": feature, "finding": finding, "effect": effect}


def test_longest_passing_paths_come_first(tmp_path):
    matches = {("a", FIRST): permutation(1, 0, 2, 3), ("a", SECOND): permutation(0, 1, 3, 2)}
    write_hand_run(tmp_path, matches)
    write_verified(tmp_path, FIRST, [
        row(0, "passes", 0.2), row(1, "passes", 0.9), row(2, "fails", 0.9),
        row(3, "passes", 0.4), row(2, "passes", 1.0, arm="b"),
    ])  # fmt: skip
    write_verified(tmp_path, SECOND, [
        row(0, "fails", 0.1), row(1, "passes", 0.3), row(2, "passes", 0.6), row(3, "passes", 0.5),
    ])  # fmt: skip
    # 0 -> 1 -> 1 passes twice with 0.5, 3 -> 3 -> 2 twice with 0.9; 1 -> 0 passes once; the path
    # through feature 2 of layer 0 passes only from layer 1, so layer 1 is its start.
    assert verified_start(RunData.open(tmp_path)) == [
        (SaeKey("default", 0), 3, 2), (SaeKey("default", 0), 0, 2),
        (SaeKey("default", 0), 1, 1), (SaeKey("default", 1), 2, 1),
    ]  # fmt: skip


def test_no_start_without_verify(tmp_path):
    write_hand_run(tmp_path, {("a", FIRST): permutation(1, 0)})
    assert verified_start(RunData.open(tmp_path)) == []

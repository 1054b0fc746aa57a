"""Paths follow the best partners; hand-made runs have one answer each."""

import pytest
import torch

from hand_run import write_hand_run
from matches import of_dense, permutation
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.paths import Node, Paths, nodes_of, parse_node
from saematch.explorer.run_data import RunData

A, B = "a", "b"


def paths_of(tmp_path, matches, arm="m"):
    return Paths(RunData.open(write_hand_run(tmp_path / "run", matches)), arm)


def names(paths, suite, layer, feature):
    start = Node(SaeKey(suite, layer), feature)
    return [node.name for node in nodes_of(start, paths.path(start))]


def test_a_path_is_the_composition_of_best_partners(tmp_path):
    """The oracle: a planted permutation of each pair, composed by ``Match.compose``."""
    planted = {("m", Pair.of_layers(n, n + 1)): permutation(n) for n in range(4)}
    paths = paths_of(tmp_path, planted)
    composed = [permutation(0)]
    for n in range(1, 4):
        composed.append(composed[-1].compose(permutation(n)))
    for feature in range(24):
        expected = [feature, *(int(match.columns[feature]) for match in composed)]
        start = Node(SaeKey("default", 0), feature)
        nodes = nodes_of(start, paths.path(start))
        assert [node.feature for node in nodes] == expected
        for node in nodes:  # the path is the same from each of its features
            assert nodes_of(node, paths.path(node)) == nodes


def test_the_best_partner_has_the_largest_absolute_weight(tmp_path):
    first = of_dense(torch.tensor([[0.2, -0.9, 0.4], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    second = of_dense(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.3]]))
    pairs = {("m", Pair.of_layers(0, 1)): first, ("m", Pair.of_layers(1, 2)): second}
    paths = paths_of(tmp_path, pairs)
    assert names(paths, "default", 0, 0) == ["0/0", "1/1", "2/1"]
    assert names(paths, "default", 0, 1) == ["0/1", "1/0", "2/0"]  # a tie: the first target
    assert names(paths, "default", 0, 2) == ["0/2"]  # no partner
    assert names(paths, "default", 2, 1) == ["0/0", "1/1", "2/1"]
    # 1/2 has the source 0/0, whose best partner is another feature
    assert names(paths, "default", 1, 2) == ["0/0", "1/2", "2/1"]
    links = paths.partners(Pair.of_layers(0, 1), 0)
    assert [(link.target.feature, round(link.weight, 3)) for link in links] == [
        (1, -0.9), (2, 0.4), (0, 0.2),
    ]  # fmt: skip


def test_the_next_sae_is_the_nearest_layer_that_the_arm_matched(tmp_path):
    n = 5
    matches = {
        ("m", Pair.of_layers(0, 3)): permutation(9, n),
        ("m", Pair.of_layers(0, 1)): permutation(1, n),
        ("m", Pair.of_layers(1, 3)): permutation(2, n),
        ("other", Pair.of_layers(1, 2)): permutation(3, n),
    }
    paths = paths_of(tmp_path, matches)
    start = Node(SaeKey("default", 0), 2)
    assert [node.key.layer for node in nodes_of(start, paths.path(start))] == [0, 1, 3]
    other = Paths(paths.run, "other")
    assert other.path(start) == []
    assert other.partners(Pair.of_layers(0, 1), 2) == []


def test_pairs_that_go_down_are_followed_down_only_without_pairs_that_go_up(tmp_path):
    n = 4
    down = {("m", Pair.of_layers(n_, n_ - 1)): permutation(n_, n) for n_ in (3, 2)}
    paths = paths_of(tmp_path / "down", down)
    assert [name[0] for name in names(paths, "default", 2, 1)] == ["3", "2", "1"]
    both = down | {("m", Pair.of_layers(2, 3)): permutation(7, n)}
    paths = paths_of(tmp_path / "both", both)
    assert [name[0] for name in names(paths, "default", 3, 1)] == ["2", "3"]


def test_a_path_stays_in_its_suite_and_crosses_where_a_suite_has_no_pairs(tmp_path):
    n = 4
    cross = {("m", Pair(SaeKey(A, 1), SaeKey(B, 1))): permutation(5, n)}
    paths = paths_of(tmp_path / "cross", cross)
    assert [name[:4] for name in names(paths, A, 1, 0)] == ["a/1/", "b/1/"]
    assert names(paths, A, 1, 0) == names(paths, B, 1, int(permutation(5, n).columns[0]))
    within = cross | {
        ("m", Pair.of_layers(0, 1, A)): permutation(1, n),
        ("m", Pair.of_layers(1, 2, B)): permutation(2, n),
    }
    paths = paths_of(tmp_path / "within", within)
    assert [name[:4] for name in names(paths, A, 0, 0)] == ["a/0/", "a/1/"]
    assert [name[:4] for name in names(paths, B, 1, 0)] == ["b/1/", "b/2/"]


def test_features_are_named_by_layer_and_number(tmp_path):
    matches = {
        ("m", Pair.of_layers(0, 1)): permutation(1, 4),
        ("m", Pair.of_layers(0, 1, A)): permutation(1, 4),
    }
    run = RunData.open(write_hand_run(tmp_path / "run", matches))
    assert parse_node(run, "1/3") == Node(SaeKey("default", 1), 3)
    assert parse_node(run, "a/0/2") == Node(SaeKey("a", 0), 2)
    for text, message in {
        "3": "is not a feature: write LAYER/FEATURE",
        "1/" + "9" * 5000: "is not a feature",
        "x/3": "is not a feature",
        "1/-3": "is not a feature",
        "²/3": "is not a feature",
        "7/3": "no SAE of layer 7: choose among layer 0 of a, layer 1 of a, layer 0, layer 1",
        "c/0/3": "no suite c: choose one of a, default",
        "1/4": "feature 4: the SAE of layer 1 has the features 0 to 3",
    }.items():
        with pytest.raises(InputError) as refused:
            parse_node(run, text)
        assert message in str(refused.value)

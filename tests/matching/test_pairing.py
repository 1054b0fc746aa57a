"""Layouts of the pairs of a run."""

import pytest

from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.pairing import FromStarts, Listed, Neighbours, SameLayer


def layers_of(pairs):
    return [(pair.source.layer, pair.target.layer) for pair in pairs]


def test_neighbours():
    pairs = Neighbours()({"a": [0, 2, 3], "b": [0, 2]})
    assert layers_of(pairs) == [(0, 2), (2, 3), (0, 2)]
    assert [pair.suites for pair in pairs] == ["a", "a", "b"]


def test_neighbours_at_several_distances_count_the_layers_that_have_an_sae():
    pairing = Neighbours([2, 1])
    assert layers_of(pairing({"a": [0, 2, 3, 5], "b": [4]})) == [
        (0, 2), (2, 3), (3, 5), (0, 3), (2, 5)
    ]  # fmt: skip
    assert Neighbours().chains
    assert not pairing.chains
    with pytest.raises(InputError, match="a distance of 2 need at least 3 layers"):
        Neighbours([2])({"a": [0, 1]})


def test_from_starts():
    layers = {"default": [0, 2, 3, 5]}
    assert layers_of(FromStarts([2, 0])(layers)) == [(0, 2), (0, 3), (0, 5), (2, 3), (2, 5)]
    assert layers_of(FromStarts([2, 0], reach=1)(layers)) == [(0, 2), (2, 3)]


def test_same_layer():
    pairs = SameLayer("a", "b")({"a": [0, 1, 2], "b": [1, 2, 3]})
    assert pairs == (Pair(SaeKey("a", 1), SaeKey("b", 1)), Pair(SaeKey("a", 2), SaeKey("b", 2)))


def test_listed():
    pairs = Listed(["5:3", "default/4:l0-40/4"])({"default": [3, 4, 5], "l0-40": [4]})
    assert pairs == (Pair.of_layers(5, 3), Pair(SaeKey("default", 4), SaeKey("l0-40", 4)))


def test_labels():
    assert Pair.of_layers(3, 4).label == "3-4"
    assert Pair.of_layers(3, 4, "l0_20").label == "l0_20/3-4"
    assert Pair(SaeKey("default", 4), SaeKey("wide", 4)).label == "default-wide/4-4"


@pytest.mark.parametrize(
    ("pairing", "layers", "message"),
    [
        (Neighbours(), {"default": [4]}, r"layers=\[4\]: .* pairing=same_layer"),
        (
            FromStarts([3]),
            {"default": [0, 3]},
            r"starts=\[3\]: 3 must be one of .* not the last",
        ),
        (SameLayer("default", "wide"), {"default": [4]}, "pairing.target=wide: .* no such suite"),
        (SameLayer("a", "a"), {"a": [4]}, r"both a: .* \+sae@suites"),
        (SameLayer("a", "b"), {"a": [4], "b": [5]}, "share no layer: .* pairing=listed"),
        (Listed(["3:9"]), {"default": [3]}, "no SAE default/9; .* default: 3"),
        (Listed(["3:3"]), {"default": [3]}, "default/3 is paired with itself"),
        (
            Listed(["3:5", "default/3:05"]),
            {"default": [3, 5]},
            "3:5 and default/3:05 are the same pair",
        ),
    ],
)
def test_refused(pairing, layers, message):
    with pytest.raises(InputError, match=message):
        pairing(layers)


@pytest.mark.parametrize("pairs", [["3-4"], ["3"], ["a/b/3:4"], [":"], []])
def test_refused_texts(pairs):
    with pytest.raises(InputError, match="pairing"):
        Listed(pairs)

"""Figures of runs with several suites: every point has the label of its own pair."""

import pytest

from saematch.core.pairs import Pair
from saematch.report.figures import mse
from saematch.report.studies import similar_l0
from saematch.report.style import by_pair, panels


def strategy_rows(pairs, arm="folded"):
    numbers = {"strategy": "permute", "dataset": "prose", "quantile": None}
    return [
        {**pair.columns(), "arm": arm, **numbers, "explained_variance": 0.1 * n}
        for n, pair in enumerate(pairs, 1)
    ]


def ticks(axis):
    return dict(
        zip(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()], strict=True)
    )


def labelled_points(axis):
    """Return the label and the value of each point of the lines with a label."""
    label = ticks(axis)
    return {
        (line.get_label(), label[x]): y
        for line in axis.lines
        if not line.get_label().startswith("_")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


@pytest.fixture
def closing():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.usefixtures("closing")
def test_suites_with_different_pairs_share_an_axis():
    default = [Pair.of_layers(3, 4), Pair.of_layers(3, 5)]
    wide = [Pair.of_layers(3, 5, "wide")]
    keys = {key for pair in (*default, *wide) for key in pair}
    layers = [{**key._asdict(), "mean_l0": 20.0} for key in sorted(keys)]
    rows = strategy_rows(default) + strategy_rows(wide)
    axis = similar_l0({"strategies": rows, "layers": layers}).axes[1]
    assert labelled_points(axis) == {
        ("folded (default)", "3→4"): pytest.approx(0.1),
        ("folded (default)", "3→5"): pytest.approx(0.2),
        ("folded (wide)", "3→5"): pytest.approx(0.1),
    }
    assert axis.get_xlabel() == "layers"  # of two suites


@pytest.mark.usefixtures("closing")
def test_an_arm_without_some_pairs_keeps_their_labels():
    pairs = [Pair.of_layers(n, n + 1) for n in range(3)]
    errors = {f"mse_{part}": 1.0 for part in ("W_enc", "b_enc", "W_dec")}
    rows = [{**pair.columns(), "arm": "folded", **errors} for pair in pairs]
    rows += [{**pair.columns(), "arm": "composed", **errors} for pair in pairs[1:]]
    points = labelled_points(mse({"matches": rows}).axes[0])
    assert [label for arm, label in points if arm == "composed"] == ["1→2", "2→3"]
    assert [label for arm, label in points if arm == "folded"] == ["0→1", "1→2", "2→3"]


@pytest.mark.usefixtures("closing")
def test_the_axis_of_another_suite_names_it():
    _, (axis, *_) = panels(2)
    by_pair(axis, strategy_rows([Pair.of_layers(1, 2, "wide")]), "explained_variance")
    assert axis.get_xlabel() == "layers, wide→wide"

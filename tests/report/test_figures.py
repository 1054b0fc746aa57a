import matplotlib.pyplot as plt
import numpy as np
import pytest

from saematch.core.columns import EXPLAINED_VARIANCE
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report.captions import CAPTIONS, IN_THE_PAPER, INTERVALS
from saematch.report.figures import FIGURES, NEEDS, OF_TRAINING, draw_figures, run_label
from saematch.report.style import arm_style, axis_label, from_zero, legend, panels, scale

PAIRS = [(0, 1), (1, 2), (2, 4)]
ARMS = ("late", "whole")
"""The first arm has no match of the first pair."""


def placed(source, target, **columns):
    return {"source_suite": "default", "source_layer": source, "target_suite": "default",
            "target_layer": target, **columns}  # fmt: skip


def of_arms(**columns):
    return [
        placed(*pair, arm=arm, **columns)
        for pair in PAIRS
        for arm in ARMS
        if (pair, arm) != (PAIRS[0], "late")
    ]


def shown(axis, label):
    """Return the pairs of layers at which an axis has points of a label."""
    names = dict(
        zip(axis.get_xticks(), [t.get_text() for t in axis.get_xticklabels()], strict=True)
    )
    (line,) = [line for line in axis.lines if line.get_label() == label]
    return [names[at] for at in line.get_xdata()]


@pytest.mark.parametrize("name", ["mse", "matching", "explained_variance"])
def test_an_arm_has_no_point_at_a_pair_that_it_did_not_match(name):
    errors = dict.fromkeys(("mse_W_enc", "mse_b_enc", "mse_W_dec"), 1.0)
    cell = {"dataset": "t", "strategy": "permute", "quantile": None, "explained_variance": 0.5}
    tables = {"matches": of_arms(**errors, value=1.0), "strategies": of_arms(**cell)}
    axis = FIGURES[name](Tables.of(tables)).axes[0]
    assert shown(axis, "late") == ["1→2", "2→4"]
    assert shown(axis, "whole") == ["0→1", "1→2", "2→4"]


def test_an_arm_with_one_pair_has_its_point_at_that_pair():
    tables = {"matches": [*of_arms(value=1.0)[:2], placed(2, 4, arm="late", value=1.0)]}
    axis = FIGURES["matching"](Tables.of(tables)).axes[0]
    assert shown(axis, "late")[-1] == "2→4"
    assert axis.get_xlim()[0] < 0 and axis.get_xlim()[1] > 2


def test_the_judge_s_scores_are_at_their_pairs():
    labels = dict.fromkeys(
        ("same", "maybe", "different", "unparsed", "refused", "unexplained", "unasked"), 1
    )
    counts = {f"n_{label}": n for label, n in labels.items()}
    scores = sorted(of_arms(role="pair", judge_score=2.0, **counts), key=lambda row: row["arm"])
    axes = FIGURES["judge_layers"](Tables.of({"matches": of_arms(), "judge_scores": scores})).axes
    assert shown(axes[2], "late") == ["1→2", "2→4"]
    assert shown(axes[2], "whole") == ["0→1", "1→2", "2→4"]


def test_the_histogram_of_a_pair_has_the_arms_that_matched_it(tmp_path):
    bins = of_arms(mse_low=0.0, mse_high=1.0, n_pairs=3)
    tables = Tables.of({"matches": [], "feature_mse_histogram": bins})
    drawn = draw_figures(tables, ("feature_mse",), tmp_path)
    assert list(drawn) == ["feature_mse"]


def test_suites_with_different_pairs_share_an_axis():
    cell = {"arm": "folded", "strategy": "permute", "dataset": "t", "quantile": None}
    wide = dict.fromkeys(("source_suite", "target_suite"), "wide")
    rows = [placed(*pair, explained_variance=0.5, **cell) for pair in [(3, 4), (3, 5)]]
    rows.append({**placed(3, 5, explained_variance=0.5, **cell), **wide})
    layers = [
        {"suite": suite, "layer": layer, "mean_l0": 20.0}
        for suite in ("default", "wide")
        for layer in (3, 4, 5)
    ]
    axis = FIGURES["similar_l0"](Tables.of({"strategies": rows, "layers": layers})).axes[1]
    assert shown(axis, "folded (default)") == ["3→4", "3→5"]
    assert shown(axis, "folded (wide)") == ["3→5"]
    assert axis.get_xlabel() == "layers"  # of two suites


def test_each_figure_has_a_caption_of_one_sentence():
    assert IN_THE_PAPER.keys() <= CAPTIONS.keys()
    assert CAPTIONS.keys() == NEEDS.keys() == {*FIGURES, *OF_TRAINING}
    assert all(text.endswith(".") and ". " not in text for text in CAPTIONS.values())


def scaled(metric, *values):
    """Return an axis with the scale of some values of a metric."""
    axis = plt.figure().add_subplot()
    scale(axis, metric, np.array(values))
    return axis


def test_an_axis_is_symlog_only_for_values_beyond_one_and_says_so():
    linear = scaled("explained_variance", -0.4, 0.9)
    assert linear.get_yscale() == "linear"
    assert axis_label(EXPLAINED_VARIANCE, linear) == "explained variance"
    wide = scaled("explained_variance", -40.0, 0.9, np.nan, -np.inf)
    assert wide.get_yscale() == "symlog"
    assert axis_label(EXPLAINED_VARIANCE, wide) == "explained variance (symlog below −1)"
    plt.close("all")


@pytest.mark.parametrize(
    ("metric", "values", "ticks"),
    [
        ("explained_variance", (-40.0, 0.9), {-10, -1, -0.5, 0, 0.5, 1}),
        ("delta_loss", (0.02, 8.0), {0, 0.05, 0.1, 0.3, 1, 3, 10}),
        ("delta_loss", (-0.3, 2.0), {-0.3, -0.1, 0, 0.1, 0.3, 1, 3}),
    ],
)
def test_symlog_axes_have_ticks_at_the_values(metric, values, ticks):
    axis = scaled(metric, *values)
    drawn = axis.get_yticks()
    assert ticks <= set(drawn.round(6))
    low, high = axis.get_ylim()
    assert low <= min(*values, *drawn) and max(*values, *drawn) <= high
    places = np.sort(axis.yaxis.get_transform().transform(drawn))
    assert np.diff(places).min() > 0.05 * np.ptp(axis.yaxis.get_transform().transform([low, high]))
    plt.close("all")


def test_arms_differ_in_marker_and_line():
    matches = Tables.of({"matches": [{"arm": f"arm {n}"} for n in range(6)]})["matches"]
    styles = [arm_style(f"arm {n}", matches) for n in range(6)]
    assert len({style["marker"] for style in styles}) == 6
    assert len({str(style["linestyle"]) for style in styles}) == 6


def test_a_figure_names_its_run_and_is_written_three_times(tmp_path, real_figures):
    real_figures()
    tables = Tables.of({"matches": of_arms(value=1.0)})
    label = "model · saes_$x$ · match/a"
    assert list(draw_figures(tables, ["matching"], tmp_path / "a", label)) == ["matching"]
    draw_figures(tables, ["matching"], tmp_path / "b", label)
    names = ["captions.md", "matching.pdf", "matching.png", "matching.svg"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert label in (tmp_path / "a/matching.svg").read_text("utf-8")
    pdf = (tmp_path / "a/matching.pdf").read_bytes()
    assert b"/Type0" in pdf and b"/Type3" not in pdf, "fonts are embedded as TrueType"
    captions = (tmp_path / "a/captions.md").read_text("utf-8")
    assert captions.split("\n\n") == [
        label,
        f"**matching** (the paper's figures 7 right and 12). {CAPTIONS['matching']}",
        f"{INTERVALS}\n",
    ]


def test_the_label_of_a_run_names_models_saes_and_run():
    def label(*saes):
        origins = [dict(zip(("model_name", "release"), sae, strict=True)) for sae in saes]
        saes = {str(number): origin for number, origin in enumerate(origins)}
        return run_label(Results("mse", {}, {"saes": saes, "model": {"name": "m"}}), "a")

    assert label(("x", "r"), ("x", "r")) == "x · r · mse/a"
    assert label((None, "r"), (None, "s")) == "m · r, s · mse/a"
    assert label(("x", "r"), ("y", "s"), ("y", "t")) == "x, y · r, s, and 1 more · mse/a"
    assert label() == "m · mse/a"


@pytest.mark.parametrize("n_panels", [1, 3])
def test_a_legend_is_no_wider_than_its_figure(n_panels):
    figure, axes = panels(n_panels)
    for number in range(7):
        axes[0].plot([0, 1], [0, number], label=f"a long name of arm {number}, raw scale")
    legend(figure, *axes)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    plt.close(figure)


@pytest.mark.parametrize(("values", "top"), [([0.5, 0.645], 0.66), ([0.0, 0.0], 0.01)])
def test_the_highest_point_of_an_axis_from_zero_is_whole(values, top):
    figure, (axis,) = panels(1)
    axis.plot([1, 2], values)
    from_zero(axis)
    assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] >= top
    plt.close(figure)

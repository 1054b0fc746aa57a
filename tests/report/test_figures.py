import pytest

from saematch.core.tables import Tables
from saematch.report.captions import CAPTIONS
from saematch.report.figures import FIGURES, NEEDS, OF_TRAINING, draw_figures

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
    assert CAPTIONS.keys() == NEEDS.keys() == {*FIGURES, *OF_TRAINING}
    assert all(text.endswith(".") and ". " not in text for text in CAPTIONS.values())


def test_one_pair_has_a_point_with_an_interval_for_each_cell():
    row = {"dataset": "t", "quantile": None, "explained_variance": 0.5,
           "explained_variance_low": 0.4, "explained_variance_high": 0.6}  # fmt: skip
    cells = [placed(0, 1, arm=arm, strategy="permute", **row) for arm in ARMS]
    figure = FIGURES["explained_variance"](Tables.of({"strategies": cells}))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == list(ARMS)
    points = [line for line in axis.lines if line.get_marker() != "None"]
    assert [(*p.get_xdata(), *p.get_ydata()) for p in points] == [(0, 0.5), (1, 0.5)]
    bars = [list(line.get_ydata()) for line in axis.lines if len(set(line.get_xdata())) == 1]
    assert [0.4, 0.6] in bars
    errors = {"mse_W_enc": 1e-6, "mse_b_enc": 0.2, "mse_W_dec": 3.0}
    matches = [placed(0, 1, arm=arm, value=1.0, **errors) for arm in ARMS]
    axes = FIGURES["mse"](Tables.of({"matches": matches})).axes
    assert [line.get_xdata()[0] for line in axes[2].lines] == [3.0, 3.0]


def test_figures_have_a_label_captions_and_three_formats(tmp_path):
    matches = [placed(0, 1, arm=arm, value=1.0) for arm in ARMS]
    drawn = draw_figures(Tables.of({"matches": matches}), ["matching"], tmp_path, "m · s · run/a")
    assert drawn == {"matching": tmp_path / "matching.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "captions.md", "matching.pdf", "matching.png", "matching.svg"
    ]  # fmt: skip
    captions = (tmp_path / "captions.md").read_text()
    assert captions == f"m · s · run/a\n\n**matching.** {CAPTIONS['matching']}\n"

"""Names and values of the history and the means of a run."""

import pytest

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.tables import Tables
from saematch.report.summary import charts_by_layer, history_by_layer, mean_metrics, optimal_to

COLUMNS = (
    Column("recall", "recall", logged=("matches",)),
    Column("judge_score", "judge score", logged=("matches",)),
    Column("explained_variance", "explained variance", logged=("strategies", "saes")),
    Column("mean_norm", "mean norm", logged=("layers",)),
    Column("drift", "drift", logged=("drifts",)),
    Column("n_90", "pairs"),
)


def pair(source, target, suite="default", **columns):
    return {"source_suite": suite, "source_layer": source, "target_suite": suite,
            "target_layer": target, "arm": "a", **columns}  # fmt: skip


def test_the_parts_of_a_name():
    cell = {"dataset": "d", "strategy": "permute"}
    tables = Tables.of(
        {
            "matches": [pair(0, 1, recall=0.5, n_90=3), pair(1, 2, "wide", recall=None, n_90=3)],
            "strategies": [
                pair(0, 1, quantile=None, explained_variance=0.25, **cell),
                pair(0, 1, quantile=0.1, explained_variance=0.75, **cell),
            ],
            "judge_scores": [
                pair(0, 1, role="pair", judge_score=2.0),
                pair(0, 1, role="random", judge_score=1.0),
                pair(None, None, role="random", judge_score=1.0),
            ],
            "layers": [{"suite": "wide", "layer": 2, "mean_norm": 3.0}],
            "saes": [{"layer": 1, "explained_variance": 0.9}],
            "drifts": [pair(1, 2, "wide", drift=7.0)],
        },
        COLUMNS,
    )
    assert history_by_layer(tables) == {
        1: {
            "recall/a": 0.5,
            "explained_variance/d/a/permute": 0.25,
            "explained_variance/d/a/permute@0.1": 0.75,
            "sae/explained_variance": 0.9,
            "judge_control/random": 1.0,
        },
        2: {"mean_norm/wide": 3.0, "drift/a/wide": 7.0},
    }


def test_several_sources_of_a_target_are_named_and_averaged_apart():
    matches = [pair(0, 2, recall=0.5), pair(1, 2, recall=0.25), pair(0, 3, recall=1.0)]
    tables = Tables.of({"matches": matches}, COLUMNS)
    assert mean_metrics(tables) == {"recall/a/from_0": 0.75, "recall/a/from_1": 0.25}
    assert history_by_layer(tables)[2] == {"recall/a/from_0": 0.5, "recall/a/from_1": 0.25}


def test_without_definitions_nothing_is_logged():
    assert history_by_layer(Tables.of({"matches": [pair(0, 1, recall=0.5)]})) == {}
    assert mean_metrics(Tables()) == {}


def test_an_arm_is_optimal_to_its_largest_gap_if_all_its_matches_have_one():
    gaps = {"a": [(0.5, None), (0.1, 0.2)], "b": [(0.1, 0.1), (None, None)]}
    rows = [
        {**pair(0, 1), "arm": arm, "gap": gap, "gap_over_chance": over_chance}
        for arm, of_arm in gaps.items()
        for gap, over_chance in of_arm
    ]
    assert optimal_to(Tables.of({"matches": rows})) == {"optimal_to/a": 0.5}


def test_rows_without_an_arm_or_a_layer():
    """An arm that is missing has no part in the name; a row over all layers is not logged."""
    drifts = [pair(0, 1, drift=1.0) | {"arm": None}, pair(None, None, drift=5.0) | {"arm": None}]
    tables = Tables.of({"drifts": drifts}, COLUMNS)
    assert history_by_layer(tables) == {1: {"drift": 1.0}}
    assert mean_metrics(tables) == {"drift": 1.0}


def test_a_table_without_layers_is_refused_by_name():
    tables = Tables.of({"drifts": [{"arm": "a", "drift": 1.0}]}, COLUMNS)
    with pytest.raises(InputError, match="drift is logged from the table drifts, which has no"):
        mean_metrics(tables)


def test_charts_have_a_line_for_each_arm_and_the_definition_as_their_title():
    recall = [pair(n, n + 1, recall=n / 10) | {"arm": arm} for arm in "ba" for n in (2, 0)]
    splice = [
        pair(n, n + 1, explained_variance=0.5, dataset=dataset, strategy="permute", quantile=None)
        for n in (0, 1)
        for dataset in ("d", "e")
    ]
    scores = [pair(n, n + 1, role="random", judge_score=1.0) for n in (0, 1)]
    tables = Tables.of(
        {
            "matches": [*(row | {"judge_score": 2.0} for row in recall)],
            "strategies": splice,
            "judge_scores": scores,
            "layers": [{"suite": "default", "layer": n, "mean_norm": 3.0} for n in (0, 1)],
            "saes": [{"layer": 1, "explained_variance": 0.9}],
        },
        (*COLUMNS, Column("mean_norm", "mean norm", unit="nats", logged=("layers",))),
    )
    charts = {chart.name: chart for chart in charts_by_layer(tables)}
    assert list(charts) == ["recall", "judge_score", "explained_variance/d",
                            "explained_variance/e", "mean_norm"]  # fmt: skip
    assert charts["recall"].points == [(1, "a", 0.0), (3, "a", 0.2), (1, "b", 0.0), (3, "b", 0.2)]
    assert charts["mean_norm"].title == "mean norm (nats)"
    assert charts["mean_norm"].points == [(0, "mean_norm", 3.0), (1, "mean_norm", 3.0)]
    assert charts["explained_variance/d"].title == "explained variance, d"
    assert {line for _, line, _ in charts["explained_variance/d"].points} == {"a/permute"}
    assert {line for _, line, _ in charts["judge_score"].points} == {"a", "b", "control/random"}


def test_a_metric_with_too_many_lines_or_one_layer_has_no_chart():
    recall = [pair(n, n + 1, recall=0.5) | {"arm": f"a{m}"} for n in (0, 1) for m in range(41)]
    assert not charts_by_layer(Tables.of({"matches": recall}, COLUMNS))
    assert charts_by_layer(Tables.of({"matches": [r for r in recall if r["arm"] < "a3"]}, COLUMNS))
    one_layer = Tables.of({"matches": [pair(0, 1, recall=0.5)]}, COLUMNS)
    assert not charts_by_layer(one_layer)
    assert not charts_by_layer(Tables())

import pytest

from saematch.core.columns import Column
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report.figures import FIGURES
from saematch.report.metrics import other_metrics, own_columns, print_metrics
from saematch.report.terminal import optimality, print_results

ROW = {"source_suite": "default", "source_layer": 0, "target_suite": "default", "target_layer": 1,
       "gap": None, "gap_over_chance": 0.0, "certain": None, "n_90": 30, "n_matched": 20,
       "n_entries": 60, "recall": 0.5}  # fmt: skip
DRIFT = Column("drift", "drift of the norm", "lower", "nats", 0.0, logged=("drifts",), meaning="M")


def test_the_share_that_carries_the_value_is_one_of_pairs_not_of_features():
    (line,) = optimality(Tables.of({"matches": [{**ROW, "arm": "a"}]}))
    assert line.endswith("in as few as 50% of them")


def test_a_metric_of_another_evaluation_has_its_label_and_unit(tmp_path, capsys):
    rows = [
        {**ROW, "arm": arm, "drift": drift} for arm, drift in (("a", 1.0), ("a", 2.0), ("b", 4.0))
    ]
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}], "drifts": rows}, [DRIFT])
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    assert "drift of the norm (nats), mean over pairs: a 1.500, b 4.000" in capsys.readouterr().out
    assert [axis.get_title() for axis in FIGURES["others"](tables).axes] == [DRIFT.with_unit]


@pytest.mark.parametrize("show", [True, False])
def test_the_last_line_of_a_run_that_matched_leads_to_its_page(tmp_path, capsys, show):
    folder = tmp_path / "a run"
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}]})
    print_results(Results("x", {"show": show}, {}, tables=tables), folder)
    page = f"file://{tmp_path}/a%20run/explorer/index.html"
    line = f"follow features in a browser: {page if show else f'saematch show {str(folder)!r}'}"
    assert capsys.readouterr().out.splitlines()[-1] == line
    print_results(Results("x", {"show": show}, {}), folder)
    assert "browser" not in capsys.readouterr().out


def test_the_package_s_own_metrics_are_not_among_the_others():
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}]}, own_columns().values())
    assert other_metrics(tables) == []


def test_the_definitions_of_metrics_are_printed(capsys):
    print_metrics(
        [DRIFT, Column("share", "a share", "higher", least=0.0, greatest=1.0, interval=True)]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "drift",
        "drift",
        "of",
        "the",
        "norm",
        "nats",
        "lower",
        "at",
        "least",
        "0",
        "no",
        "M",
    ] in lines
    assert ["share", "a", "share", "–", "higher", "0", "to", "1", "yes"] in lines


def test_a_table_strategies_of_another_package_is_no_table_of_skipped_layers(tmp_path, capsys):
    cell = {"arm": "a", "dataset": "all", "strategy": "mine", "quantile": None, "drift": 1.0}
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}], "strategies": [{**ROW, **cell}]})
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    assert "Explained variance" not in capsys.readouterr().out
    for name in ("explained_variance", "persistence", "sparsity", "similar_l0", "quantiles"):
        assert FIGURES[name](tables) is None


def test_a_table_that_is_wider_than_the_terminal_has_a_row_for_each_arm(tmp_path, capsys):
    arms = [f"arm_{number}" for number in range(30)]
    rows = [{**ROW, "arm": arm, "recall": 0.5} for arm in arms]
    print_results(Results("x", {}, {}, tables=Tables.of({"matches": rows})), tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[:1] == ["recall"]] == [
        ["recall", arm, "0.500"] for arm in arms
    ]


def test_a_table_that_does_not_fit_the_terminal_is_named(tmp_path, capsys):
    rows = [
        {**ROW, "arm": f"arm_{arm}", "source_layer": layer, "target_layer": layer + 1}
        for arm in range(30)
        for layer in range(30)
    ]
    print_results(Results("x", {}, {}, tables=Tables.of({"matches": rows})), tmp_path)
    assert "30 x 30 cells do not fit this terminal: results.json" in capsys.readouterr().out

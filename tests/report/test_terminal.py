import logging

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
    assert line.endswith("in as few as 50% of its pairs")


def test_a_metric_of_another_evaluation_has_its_label_and_unit(tmp_path, capsys):
    rows = [
        {**ROW, "arm": arm, "drift": drift} for arm, drift in (("a", 1.0), ("a", 2.0), ("b", 4.0))
    ]
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}], "drifts": rows}, [DRIFT])
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    assert "drift of the norm (nats), mean over pairs: a 1.50, b 4.00" in capsys.readouterr().out
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


def test_means_over_pairs_are_printed_with_half_of_their_interval(tmp_path, capsys):
    pairs = [{**ROW, "source_layer": n, "target_layer": n + 1, "arm": "a"} for n in (0, 1)]
    cell = {"arm": "a", "dataset": "web", "strategy": "permute", "quantile": None}
    scores = [{**row, "matching_score": 0.25 + n / 2} for n, row in enumerate(pairs)]
    losses = [
        {**row, **cell, "explained_variance": 0.1 + n, "delta_loss": n}
        for n, row in enumerate(pairs)
    ]
    means = [
        {"suites": "default", **cell, "dataset": dataset, "metric": metric, "strategy": strategy,
         "value": value, "low": low, "high": high, "n_pairs": 2}
        for dataset, strategy, metric, value, low, high in (
            (None, None, "recall", 0.5, None, None),
            ("web", None, "matching_score", 9.0, 8.0, 9.5),
            ("all", None, "matching_score", 0.75, 0.5, 1.0 - 0.125),  # cut at a limit
            ("all", "permute", "explained_variance", 0.6, 0.55, 0.65),
        )
    ]  # fmt: skip
    tables = Tables.of({"matches": scores, "strategies": losses, "means": means})
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    output = capsys.readouterr().out
    cells = [line.split() for line in output.splitlines()]
    assert ["mean", "0.500", "0.750"] in cells and ["±", "–", "0.250"] in cells
    assert ["mean", "0.600"] in cells and ["±", "0.050"] in cells
    assert "±: half of the mean's interval" in output


def test_a_table_that_does_not_fit_is_split_into_tables_with_the_same_rows(tmp_path, capsys):
    rows = [
        {**ROW, "arm": f"arm_{arm}", "source_layer": layer, "target_layer": layer + 1}
        for arm in range(30)
        for layer in range(30)
    ]
    print_results(Results("x", {}, {}, tables=Tables.of({"matches": rows})), tmp_path)
    lines = capsys.readouterr().out.partition("every match")[0].splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.500") for line in lines) == 30 * 30
    tables = [line for line in lines if line.startswith("7→8 ")]
    assert len(tables) == sum(line.startswith("layers") for line in lines) > 1
    headings = "".join(lines)
    assert all(f"arm_{arm} " in headings for arm in range(30))


def test_squared_errors_have_three_digits_and_one_notation_in_a_column(tmp_path, capsys):
    errors = {"large": (5.168, 0.007432), "tiny": (7.491e-07, 0.0021)}
    matches = [
        {**ROW, "recall": None, "arm": arm, "source_layer": layer, "mse_W_dec": error}
        for arm, of_arm in errors.items()
        for layer, error in enumerate(of_arm)
    ]
    tables = Tables.of({"matches": matches}, own_columns().values())
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    cells = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if "→1 " in line]
    assert cells == [["5.17", "7.49e-07"], ["0.00743", "2.10e-03"]]


def test_the_log_has_the_printed_text_and_the_console_does_not_repeat_it(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}]})
    (tmp_path / "matches").mkdir()
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    (record,) = [record for record in caplog.records if record.name.endswith("report.terminal")]
    assert record.only_in_file
    assert record.message == capsys.readouterr().out
    *_, files, last = record.message.splitlines()
    assert files.split() == ["matches:", str(tmp_path / "matches")]
    assert last == f"follow features in a browser: saematch show {tmp_path}"


def test_a_missing_judge_score_is_a_dash_and_pairs_judged_again_have_a_line(tmp_path, capsys):
    score = {**ROW, "role": "pair", "n_judgements": 4}
    judged = [{**score, "arm": "a", "judge_score": 2.25, "same_share": 0.4},
              {**score, "arm": "b", "judge_score": None, "same_share": None}]  # fmt: skip
    judged += [{**row, "source_layer": None, "target_layer": None} for row in judged]
    again = [
        {"compared": "swapped", "n_pairs": 30, "n_unscored": 0, "agreement": 0.9, "kappa": 0.8125,
         "score_difference": -0.1},
        {"compared": "repeated", "n_pairs": 0, "n_unscored": 3, "agreement": None, "kappa": None,
         "score_difference": None},
    ]  # fmt: skip
    tables = {"matches": [{**ROW, "arm": "a"}], "judge_scores": judged, "judge_agreement": again}
    print_results(Results("x", {}, {}, tables=Tables.of(tables)), tmp_path)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for row in (["0→1", "2.250", "–"], ["all", "2.250", "–"], ["SAME", "40%", "–"]):
        assert row in [line.split() for line in lines]
    assert (
        "judge, in the other order: the same label for 90% of 30 pairs, kappa 0.812, change in "
        "score -0.100"
    ) in lines
    assert (
        "judge, asked again: the same label for – of 0 pairs, kappa –; 3 pairs without a label"
    ) in lines


@pytest.mark.parametrize(("n", "reported"), [(1, False), (20, True)])
def test_many_judgements_without_a_label_are_reported_with_an_answer(tmp_path, capsys, n, reported):
    labels = ["UNPARSED"] * (n - 1) + ["UNEXPLAINED"] + ["SAME"] * (100 - n)
    judged = [
        {**ROW, "arm": "a", "role": "pair", "label": label, "evaluation": "I\ncannot say " * 9}
        for label in labels
    ]
    tables = Tables.of({"matches": [{**ROW, "arm": "a"}], "judgements": judged})
    print_results(Results("x", {}, {}, tables=tables), tmp_path)
    line = (
        "judge: 20 of 100 judgements have no label and count in no score: 19 UNPARSED, "
        f"1 UNEXPLAINED, such as '{('I cannot say ' * 9)[:60]}…'"
    )
    assert (line in capsys.readouterr().out.splitlines()) == reported

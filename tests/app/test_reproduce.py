"""Wrong arguments of ``saematch reproduce``."""

from __future__ import annotations

import pytest

from saematch.app import reproduce


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--only", "mse,mes"),
            "--only mes: there is no such experiment; choose among feature_mse",
        ),
        (("--only", "verify"), "not in this reproduction; run it alone with saematch +experiment"),
        (("--only", "judge_layers"), "--only judge_layers: needs a judge: add --judge overlap"),
        (("--families", "chain,chian"), "--families chian: choose among chain, independent"),
        (("--only", "llama", "--families", "chain"), "--only llama has no run on --families chain"),
        (("mse",), "'mse' is not a setting: write NAME=VALUE, or --only NAME,NAME"),
        (("run_id=a",), "run_id=a: this setting differs from run to run; use --run-id instead"),
        (("+experiment=mse",), "use --only instead"),
    ],
)
def test_wrong_arguments_end_in_one_line_before_any_run(cli, tmp_path, words, sentence):
    message, _ = cli("reproduce", *words, base=[])
    assert message.startswith("saematch: ")
    assert sentence in message
    assert not any(tmp_path.iterdir())


def test_a_wrong_setting_leaves_the_page_as_it_is(cli, tmp_path):
    page = tmp_path / "outputs/reproduction/index.md"
    page.parent.mkdir(parents=True)
    page.write_text("finished runs")
    message, _ = cli("reproduce", "--only", "mse", "dataset.n_textz=4", base=[])
    assert message.count("there is no setting 'dataset.n_textz'") == 3
    assert page.read_text() == "finished runs"


def test_the_name_of_an_experiment_chooses_its_runs():
    plan = reproduce.planned("zoo", "a", ["~judge"])
    chosen = reproduce.chosen_runs(plan, "folding", "chain,mixed")
    assert [run.experiment for run in chosen] == ["folding decoder"] * 2
    assert not reproduce.has_folder(chosen[0])

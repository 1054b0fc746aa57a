"""Every sweep file: its first command is W&B's, runs, and logs the metric that the file names."""

import warnings
from pathlib import Path

import pytest
import yaml

from app.sweep.test_file import agents_command
from saematch.app.configuration import build
from saematch.app.sweep.file import read_sweep
from saematch.report.summary import history_by_layer
from saematch.runs.run import run

SWEEPS = Path(__file__).parents[3] / "sweeps"
STUDIES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
SMALL = ["dataset.n_texts=2", "dataset.max_tokens=12", "intervals.n_replicates=5", "logger=none",
         "trainer.accelerator=cpu", "figures=[]"]  # fmt: skip
JUDGED = ["judging.n_paths=4", "judging.random=2", "judging.identity=2", "judging.ceiling=2"]


def test_the_studies():
    assert set(STUDIES) >= {"folding_parts", "sparsity", "width_objective", "quantile",
                            "layer_distance", "find_decode", "judge_model"}  # fmt: skip


def first_point(content):
    if content["method"] == "grid":
        return {name: parameter["values"][0] for name, parameter in content["parameters"].items()}
    with warnings.catch_warnings(action="ignore"):
        from sweeps import next_run

        return {name: v["value"] for name, v in next_run(content, [], validate=True).config.items()}


@pytest.mark.parametrize("study", STUDIES)
def test_the_first_command_of_every_sweep(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((SWEEPS / f"{study}.yaml").read_text())
    assert content["name"] == study
    assert content["program"] == content["project"] == "saematch"
    assert {"name", "goal"} == set(content["metric"])
    command = agents_command(content["command"], first_point(content))
    assert command[:4] == ["/usr/bin/env", "python", "-m", "saematch"]
    assert command[4].startswith("+experiment=")
    own = [] if study == "layer_distance" else ["layers=[3,4]"]
    small = SMALL + (JUDGED if study == "judge_model" else [])
    experiment, config = build([*command[4:], *own, *small])
    results = run(experiment, config, tmp_path / "run")
    name = content["metric"]["name"]
    assert name in results.metrics
    if content["method"] == "bayes":  # W&B's search takes the best of what is logged by layer
        assert not any(name in row for row in history_by_layer(results.tables).values())


@pytest.mark.parametrize("study", STUDIES)
def test_every_value_of_every_sweep_can_be_composed(study):
    sweep = read_sweep(SWEEPS / f"{study}.yaml")
    if sweep.method == "grid":
        points = sweep.grid()
        for name in sweep.parameters:
            of_name = {str(point[name]): point for point in points}
            for point in of_name.values():
                build(sweep.job_settings(point))

"""``saematch sweep`` on the tiny model: to the end, after a failure, after a kill."""

import csv
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from chat.judge_server import JudgeServer
from conftest import tiny_overrides
from saematch.app.main import main
from saematch.app.sweep import jobs
from saematch.core.results import Results
from wandb_reader import config, history, records, summary

SWEEP = """\
method: grid
metric: {name: %(metric)s, goal: maximize}
parameters: %(parameters)s
command: ["${env}", "${interpreter}", "-m", "saematch", %(settings)s, "${args_no_hyphens}"]
"""
SMALL = ["arms=[folded,random]", "intervals.n_replicates=20", "figures=[]"]


@pytest.fixture
def sweep(tiny, tmp_path, monkeypatch, capsys):
    """Run ``saematch sweep`` in an empty folder; return its exit message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)

    def run(
        *arguments,
        parameters='{objective: {values: ["both", "decoder"]}}',
        settings=("+experiment=mse",),
        metric="mse_W_dec/folded",
        logger="none",
        text=SWEEP,
    ):
        fields = {"metric": metric, "parameters": parameters,
                "settings": ", ".join(json.dumps(s) for s in settings)}  # fmt: skip
        Path("s.yaml").write_text(text % fields)
        command = [
            "saematch",
            "sweep",
            "s.yaml",
            *tiny_overrides(tiny),
            *SMALL,
            f"logger={logger}",
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", command)
        handlers = list(logging.getLogger().handlers)
        try:
            main()
            return None
        except SystemExit as exit:
            return exit.code
        finally:
            for handler in set(logging.getLogger().handlers) - set(handlers):
                handler.close()
                logging.getLogger().removeHandler(handler)

    run.output = capsys.readouterr
    return run


FOLDER = Path("outputs/sweeps/s")


def results(number):
    return Results.load(FOLDER / str(number) / "results.json")


def comparison():
    with (FOLDER / "comparison/comparison.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_jobs_wandb_run_holds_permutations_curves_and_judgements(sweep):
    server = JudgeServer()
    judge = ["judge=local", f"judge.base_url={server.url}", "judging.n_paths=4", "layers=[0,1,2]",
             "judging.random=2", "judging.identity=2", "judging.ceiling=2"]  # fmt: skip
    options = {"settings": ["+experiment=judge_layers"], "metric": "judge_score/folded"}
    assert sweep(*judge, **options, logger="wandb") is None
    server.close()
    plan = json.loads((FOLDER / "sweep.json").read_text())
    for number, objective in enumerate(("both", "decoder")):
        folder = FOLDER / str(number) / "wandb"
        entries = list(records(folder))
        (run,) = [r.run for r in entries if r.WhichOneof("record_type") == "run"]
        assert run.run_id == f"s-{plan['begun']}-{number}"
        assert run.display_name == f"s-{number}"
        assert run.run_group == f"s-{plan['begun']}"
        assert config(folder)["choices"]["objective"] == objective
        logged = history(folder)
        curves = {row["layer"]: row["mse_W_dec/folded"] for row in logged
                  if "mse_W_dec/folded" in row}  # fmt: skip
        rows = [r for r in results(number).tables.rows("matches") if r["arm"] == "folded"]
        assert curves == {row["target_layer"]: row["mse_W_dec"] for row in rows}
        judged = {row["layer"]: row["judge_score/folded"] for row in logged
                  if "judge_score/folded" in row}  # fmt: skip
        assert judged == {row["target_layer"]: row["judge_score"] for row in rows}
        (artifact,) = [r.artifact for r in entries if r.WhichOneof("record_type") == "artifact"
                       and r.artifact.type == "matches"]  # fmt: skip
        paths = {entry.path for entry in artifact.manifest.contents}
        assert {"folded/0-1.safetensors", "folded/1-2.safetensors"} <= paths
        assert (
            summary(folder)["judge_score/folded"] == results(number).metrics["judge_score/folded"]
        )
        assert list(folder.glob("offline-run-*/files/media/table/tables/judge_scores_*.json"))
    scores = {row["objective"]: row for row in comparison()
              if row["metric"] == "judge_score" and row["arm"] == "folded"}  # fmt: skip
    assert set(scores) == {"both", "decoder"}


def test_resuming_does_only_what_is_missing(sweep):
    assert sweep() is None
    table, first = comparison(), results(0).provenance
    assert "already contains a sweep: continue it with --resume" in sweep()
    assert "contains another sweep (seed: 0 -> 1)" in sweep("--resume", "--seed", "1")
    path = FOLDER / "1/results.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"'))
    sweep.output()
    assert sweep("--resume") is None
    errors = sweep.output().err
    assert "2 jobs, 1 of them finished" in errors
    value = results(1).metrics["mse_W_dec/folded"]
    assert re.search(
        rf"outputs/sweeps/s/1: finished in \d+ s, mse_W_dec/folded {value:.4g}\n", errors
    )
    assert results(0).provenance == first
    assert comparison() == table
    assert sweep("--resume") is None
    assert "2 jobs, 2 of them finished" in sweep.output().err


def test_a_failed_job_is_reported_and_the_others_run(sweep):
    layers = "{layers: {values: [[0, 9], [0, 1]]}}"
    assert sweep(parameters=layers) == (
        "saematch: 1 of 2 jobs failed or never began: outputs/sweeps/s/0; repeat with the same "
        "command and --resume"
    )
    assert results(0).status == "failed"
    assert "there is no SAE for layer 9" in results(0).error
    assert results(1).status == "finished"
    assert "there is no SAE for layer 9" in (FOLDER / "comparison/runs.csv").read_text()


def test_settings_that_do_not_go_together_are_refused_before_the_first_job(sweep):
    message = sweep(parameters="{objective: {values: [both, sideways]}}")
    assert "there is no objective=sideways" in message
    assert not (FOLDER / "sweep.json").exists()
    assert sweep() is None, "mended, it can be done in the same place"


def test_a_metric_that_no_run_has_is_named(sweep):
    assert "close ones: mse_W_dec/folded" in sweep(metric="mse_W_decoder/folded")


def test_the_command_line_replaces_parameters_and_prints_commands(sweep):
    assert sweep("--dry-run", "objective=encoder", "seed=1,2", "+experiment=norms") is None
    lines = sweep.output().out.splitlines()
    assert len(lines) == 2
    assert sweep("--dry-run", "++objective=decoder", "seed=4") is None
    (line,) = sweep.output().out.splitlines()
    assert line.endswith("objective=decoder")
    assert line.count("objective") == 1
    for line, seed in zip(lines, (1, 2), strict=True):
        assert line.startswith("python -m saematch ")
        assert f"objective=encoder seed={seed}" in line
        assert "+experiment=norms" in line
        assert "mse" not in line
    assert not FOLDER.exists()


def test_where_a_launcher_gives_up_what_began_is_recorded_and_the_rest_is_missing(
    sweep, monkeypatch
):
    real = jobs.launch

    def dies(task, planned, settings):
        real(task, planned[:1], settings)
        Results("mse", {}, {}).save(FOLDER / "1/results.json")
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr(jobs, "launch", dies)
    seeds = "{seed: {values: [1, 2, 3]}}"
    message = "2 of 3 jobs failed or never began: outputs/sweeps/s/1, outputs/sweeps/s/2; "
    assert message in sweep(parameters=seeds)
    assert "the launcher gave up: a worker was killed" in sweep.output().err
    assert results(1).status == "failed"
    assert "ended without a message" in results(1).error
    runs = (FOLDER / "comparison/runs.csv").read_text()
    assert "missing" in runs
    monkeypatch.setattr(jobs, "launch", real)
    assert sweep("--resume", parameters=seeds) is None


def test_settings_that_may_and_may_not_change_when_a_sweep_continues(sweep):
    assert "close ones" in sweep(metric="mse_W_decoder/folded")
    assert sweep("--resume", "cache=other") is None, "metric and means are mended"
    assert "another sweep (settings: [] -> ['seed=3'])" in sweep("--resume", "seed=3")
    path = FOLDER / "1/run.json"
    path.write_text(path.read_text().replace('"dataset.n_texts": 5', '"dataset.n_texts": 6'))
    assert "1 contains a run with other settings (dataset.n_texts: 6 -> 5)" in sweep("--resume")
    (FOLDER / "sweep.json").write_text("{}")
    assert "sweep.json is damaged" in sweep("--resume")
    (FOLDER / "sweep.json").unlink()
    assert "and no sweep: choose another --folder" in sweep()


def test_one_process_at_a_time(sweep):
    FOLDER.mkdir(parents=True)
    with FileLock(FOLDER / ".lock"):
        assert "another process is running the sweep" in sweep()


def test_a_launcher_that_there_is_not_leaves_nothing(sweep):
    assert "there is no hydra/launcher=slow" in sweep("hydra/launcher=slow")
    assert not FOLDER.exists()


def test_names_with_other_signs(sweep):
    folder = Path("a=b (c) {d}, 'e'")
    parameters = "{objective: {values: [both]}}"
    assert sweep("--folder", str(folder), parameters=parameters) is None
    assert (folder / "0/results.json").exists()


def test_random_points_are_planned_at_once_and_stay_the_same(sweep):
    options = {"parameters": "{seed: {distribution: int_uniform, min: 1, max: 999}}\nrun_cap: 3"}
    text = SWEEP.replace("grid", "random")
    points = []
    for arguments in (["--count", "2"], ["--count", "2"], ["--count", "3"], ["--seed", "1"]):
        assert sweep("--dry-run", *arguments, **options, text=text) is None
        points.append([line.split("seed=")[1] for line in sweep.output().out.splitlines()])
    assert points[0] == points[1] == points[2][:2]
    assert len(points[2]) == len(points[3]) == 3
    assert points[3] != points[2]


def test_a_search_asks_for_each_point_after_the_one_before(sweep, monkeypatch):
    calls = []

    def point(file, tried, seed):
        calls.append(list(tried))
        return {"objective.W_enc": [0.5, 2.0][len(tried)]}

    monkeypatch.setattr(jobs, "next_point", point)
    search = {"parameters": "{objective.W_enc: {min: 0.1, max: 3.0}}\nrun_cap: 2"}
    assert sweep(**search, text=SWEEP.replace("grid", "bayes")) is None
    first = {"objective.W_enc": 0.5}
    assert calls == [[], [(first, results(0).metrics["mse_W_dec/folded"])]]
    assert results(1).config["objective"]["W_enc"] == 2.0
    assert yaml.safe_load((FOLDER / "sweep.json").read_text())["jobs"][1]["point"] == {
        "objective.W_enc": 2.0
    }

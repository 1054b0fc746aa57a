"""W&B's own command line: sweeps of this project, and the upload of a run that was offline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands import KILLER
from conftest import tiny_overrides
from wandb_server import ENTITY, serving

KEY = "0123456789abcdef" * 2 + "saematch"
"""As long as W&B's keys are."""


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def command(server, tmp_path, monkeypatch):
    """Run a command against the server, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", programs, prepend=os.pathsep)

    def run(*arguments, code=0):
        done = subprocess.run(
            arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def sweep(command, folder: Path, tiny: Path, matching: list[str]) -> str:
    """Create a sweep with ``wandb sweep``; return its path for ``wandb agent``."""
    literals = ["+experiment=matching_score", *tiny_overrides(tiny)]
    file = {
        "name": "parts",
        "project": "saematch",
        "program": "saematch",
        "method": "grid",
        "metric": {"name": "matching_score/folded", "goal": "maximize"},
        "command": [
            *("${env}", "${interpreter}", "-m", "saematch"),
            *(*literals, "${args_no_hyphens}"),
        ],
        "parameters": {
            "dataset.n_texts": {"value": 4},
            "layers": {"value": [0, 1, 2]},
            "objective": {"values": matching},
        },
    }
    (folder / "parts.yaml").write_text(yaml.safe_dump(file))
    printed = command("wandb", "sweep", "parts.yaml").stderr
    return re.search(r"Run sweep agent with: .*wandb agent (\S+?)(\x1b|$)", printed, re.MULTILINE)[
        1
    ]


def check_arrived(run, folder: Path) -> None:
    """The server's data of a run equals the content of its folder."""
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert (run.state, run.exit_code) == ("finished", 0)
    assert results["metrics"]["matching_score/folded"] > 0
    for name, value in results["metrics"].items():
        assert run.summary[name] == value, name
    of_layer = {
        row["source_layer"]: row["matching_score"]
        for row in results["tables"]["matches"]
        if row["arm"] == "folded"
    }
    logged = {
        row["layer"]: row["matching_score/folded"]
        for row in run.history
        if "matching_score/folded" in row
    }
    assert sorted(logged.values()) == sorted(of_layer.values())
    for name, rows in results["tables"].items():
        assert run.rows(f"tables/{name}") == rows
    (figure,) = run.summary["figures/matching"]["filenames"]
    assert run.files[figure] == (folder / "figures" / "matching.png").read_bytes()
    (matches,) = [artifact for artifact in run.artifacts if artifact.type == "matches"]
    assert matches.committed
    files = {
        str(path.relative_to(folder / "matches")): path.read_bytes()
        for path in (folder / "matches").rglob("*.safetensors")
    }
    assert set(matches.manifest) == set(files)
    assert {name: matches.files[name] for name in files} == files
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_an_agent_runs_the_jobs_of_a_sweep(command, server, tiny, tmp_path):
    path = sweep(command, tmp_path, tiny, ["both", "decoder"])
    printed = command("wandb", "agent", path, "--count", "2").stderr
    assert path.startswith(f"{ENTITY}/saematch/")
    identity = path.split("/")[-1]
    assert "locked" not in printed
    assert "WARNING" not in printed
    assert len(server.runs) == 2
    folders = tmp_path / "outputs" / "matching_score"
    assert {folder.name for folder in folders.iterdir()} == set(server.runs)
    for matching, run in zip(("both", "decoder"), server.runs.values(), strict=True):
        assert run.upserts[0]["sweep"] == identity
        assert run.settings["objective"] == matching
        assert run.settings["dataset.n_texts"] == 4
        assert run.settings["dataset"]["n_texts"] == 4
        config = json.loads((folders / run.id / "results.json").read_text())["config"]
        assert run.settings["resolved"] == {"objective": config["objective"]}
        assert config["objective"]["W_enc"] == (1.0 if matching == "both" else 0.0)
        whole = {k: v for k, v in config.items() if k != "objective" and v != {}}
        assert {k: run.settings[k] for k in whole} == whole
        check_arrived(run, folders / run.id)


@pytest.mark.slow
def test_a_job_that_fails_counts_as_failed(command, server, tiny, tmp_path):
    path = sweep(command, tmp_path, tiny, ["nonsense", "both"])
    printed = command("wandb", "agent", path, "--count", "2", "--max-consecutive-failed-runs", "1")
    assert "saematch: there is no objective=nonsense: choose one of both" in printed.stderr
    assert "Traceback" not in printed.stderr
    assert len(server.runs) == 1, "the agent gave up after the first"


@pytest.mark.slow
def test_a_run_that_was_offline_and_killed_is_uploaded_later(command, server, tiny, tmp_path):
    """Its first process leaves a log that ``wandb sync`` cannot read."""
    arguments = [
        "+experiment=matching_score",
        *tiny_overrides(tiny),
        "logger.offline=true",
        "run_id=a",
    ]
    command(sys.executable, "-c", KILLER, "9", *arguments, code=-9)
    logs = tmp_path / "outputs/matching_score/a/wandb"
    (killed,) = logs.glob("offline-run-*")
    command(sys.executable, "-m", "saematch", *arguments)
    assert not server.runs
    assert not killed.exists()
    run_folders = [str(path) for path in logs.glob("*-run-*")]
    assert len(run_folders) == 2
    command("wandb", "sync", *run_folders)
    (run,) = server.runs.values()
    assert run.id == "matching_score-a"
    assert run.sweep is None
    assert len([row for row in run.history if "matching_score/folded" in row]) == 3
    config = json.loads((tmp_path / "outputs/matching_score/a/results.json").read_text())["config"]
    assert run.settings == {k: v for k, v in config.items() if v != {}}  # W&B drops those
    check_arrived(run, tmp_path / "outputs/matching_score/a")

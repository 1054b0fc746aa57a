"""The mirror in Weights & Biases, read back from an offline run."""

import glob
import io
import json
import os
import shlex
from pathlib import Path

import pytest

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import frame_of
from saematch.runs.tracking import Outcome, WandbLogging, settings_accepted
from wandb_reader import config, history, records, summary


@pytest.fixture
def wandb_folder(tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 7)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path / "wandb"


def start(tmp_path, **settings):
    import torch

    tmp_path.mkdir(exist_ok=True)
    matches = tmp_path / "matches"
    Match.from_columns(torch.tensor([1, 0]), 2).save(matches / "folded" / "0-1.safetensors")
    (matches / "folded" / ".1-2.safetensors.77.part").touch()  # of a process that was killed
    config = {"seed": 3, "overrides": ["seed=3", "sae=mixed", "run_id=a"]}
    tracker = WandbLogging(**settings).start("skip", tmp_path, config)
    return tracker, matches


def results_of_two_pairs():
    results = Results("skip", {"seed": 3}, {"git_commit": "abc"})
    rows = [
        {**Pair(SaeKey("default", n), SaeKey("default", n + 1)).columns(), "arm": "folded",
         "recall": 0.5 + n}
        for n in (0, 1)
    ]  # fmt: skip
    results.tables["matches"] = frame_of(rows)
    recall = Column("recall", "recall of the truth", "higher", "pairs", logged=("matches",),
                    meaning="M")  # fmt: skip
    results.tables.define([recall])
    return results


def test_everything_is_mirrored(tmp_path, wandb_folder):
    tracker, matches = start(tmp_path, offline=True)
    results = results_of_two_pairs()
    results.metrics = {"recall/folded": 0.5}
    figure = tmp_path / "f.png"
    figure.write_bytes(PNG)
    tracker.finish(Outcome(results, {"mse": figure}, matches))

    logged = history(wandb_folder)
    by_layer = {row["layer"]: row["recall/folded"] for row in logged if "recall/folded" in row}
    assert by_layer == {1: 0.5, 2: 1.5}
    entries = list(records(wandb_folder))
    assert config(wandb_folder)["seed"] == 3
    (run,) = [r.run for r in entries if r.WhichOneof("record_type") == "run"]
    assert run.display_name == "skip seed=3 mixed"
    (artifact,) = [
        r.artifact
        for r in entries
        if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "matches"
    ]
    assert [entry.path for entry in artifact.manifest.contents] == ["folded/0-1.safetensors"]
    assert summary(wandb_folder)["recall/folded"] == 0.5
    (table,) = wandb_folder.glob("offline-run-*/files/media/table/tables/matches_*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == list(results.tables["matches"])
    rows = results.tables.rows("matches")
    assert content["data"] == [list(row.values()) for row in rows]
    (table,) = wandb_folder.glob("offline-run-*/files/media/table/charts/recall_table_*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["layer", "line", "recall"]
    assert content["data"] == [[1, "folded", 0.5], [2, "folded", 1.5]]
    (chart,) = [
        json.loads(item.value_json)
        for entry in entries
        if entry.WhichOneof("record_type") == "config"
        for item in entry.config.update
        if item.nested_key == ["_wandb", "visualize", "charts/recall"]
    ]
    shown = chart["panel_config"]
    assert shown["panelDefId"] == "wandb/lineseries/v0"
    assert shown["stringSettings"] == {"title": "recall of the truth (pairs)", "xname": "layer"}
    assert shown["fieldSettings"] == {"step": "layer", "lineKey": "line", "lineVal": "recall"}
    (table,) = wandb_folder.glob("offline-run-*/files/media/table/tables/columns_*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["name", "label", "unit", "better", "meaning"]
    assert content["data"] == [["recall", "recall of the truth", "pairs", "higher", "M"]]
    assert list(wandb_folder.glob("offline-run-*/files/media/images/figures/mse_*.png"))


def test_two_runs_of_one_process_keep_their_uploads_apart(tmp_path, wandb_folder, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR")
    for name in ("a", "b"):
        tracker, matches = start(tmp_path / name, offline=True)
        tracker.finish(Outcome(Results("skip", {}, {}), {}, matches))
        assert "WANDB_DATA_DIR" not in os.environ
        staged = [p for p in (tmp_path / name).glob("wandb/artifacts/staging/*") if p.is_file()]
        assert len(staged) == 1, "the one match file"


def test_what_a_sweep_sets_stands_where_its_plots_look(tmp_path, wandb_folder, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb.setup(), "_sweep_config", {"matching": "decoder", "seed": 3})
    config = {"seed": 3, "matching": {"W_dec": 1.0}, "layers": [0, 1]}
    tracker = WandbLogging(offline=True).start("skip", tmp_path, config)
    tracker.finish(Outcome(Results("skip", {}, {}), {}, tmp_path / "matches"))
    kept = {}
    for record in records(wandb_folder):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            update = record.run.config.update if kind == "run" else record.config.update
            kept |= {item.key: json.loads(item.value_json) for item in update}
    assert kept["matching"] == "decoder"
    assert kept["resolved"] == {"matching": {"W_dec": 1.0}}
    assert kept["layers"] == [0, 1]


def test_only_the_last_log_of_a_resumed_run_is_left_to_upload(tmp_path, wandb_folder):
    killed, uploaded = (wandb_folder / f"offline-run-20260101_00000{n}-a" for n in (1, 2))
    for folder in (killed, uploaded):
        folder.mkdir(parents=True)
        (folder / "run-a.wandb").write_bytes(b":W&B\0\0\0")
    (uploaded / "run-a.wandb.synced").touch()
    tracker, matches = start(tmp_path, offline=True)
    tracker.finish(Outcome(Results("skip", {}, {}), {}, matches))
    assert not killed.exists()
    assert (wandb_folder / f"replaced-{killed.name}" / "run-a.wandb").exists()
    assert uploaded.exists()
    (last,) = set(wandb_folder.glob("offline-run-*")) - {uploaded}
    assert any(last.glob("run-*.wandb"))


def test_the_key_is_written_nowhere(tmp_path, wandb_folder):
    tracker, matches = start(tmp_path, offline=True)
    tracker.finish(Outcome(Results("skip", {}, {}), {}, matches))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes(), path


def test_without_a_network_the_run_is_offline_and_says_so_once(
    tmp_path, wandb_folder, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with caplog.at_level("INFO", logger="saematch"):
        tracker, matches = start(tmp_path)
        tracker.finish(Outcome(results_of_two_pairs(), {}, matches))
    messages = [r.getMessage() for r in caplog.records if r.name == "saematch.runs.tracking"]
    assert len(messages) == 1
    assert "is offline (its server cannot be reached)" in messages[0]
    command, _, pattern = messages[0].rpartition(" ")
    assert command.endswith("to upload later: wandb sync")
    (log_folder,) = glob.glob(shlex.split(pattern)[0])
    assert list(Path(log_folder).glob("*.wandb"))
    assert history(wandb_folder)


def test_a_setting_that_wandb_refuses_is_named_without_its_value():
    import wandb

    with pytest.raises(InputError) as refused, settings_accepted():
        wandb.Settings(mode="onlin")
    assert "WANDB_...: mode: Input should be 'online', 'offline'" in str(refused.value)
    assert "https://" not in str(refused.value)
    assert "'onlin'" not in str(refused.value)


def test_a_key_that_is_refused_does_not_stop_the_run(tmp_path, wandb_folder, monkeypatch, caplog):
    import wandb

    def refuse(**_):
        raise wandb.errors.AuthenticationError("the key is wrong")

    monkeypatch.setattr(wandb, "login", refuse)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    with caplog.at_level("INFO", logger="saematch"):
        tracker, matches = start(tmp_path)
        tracker.finish(Outcome(results_of_two_pairs(), {}, matches))
    assert "refuses the API key: the key is wrong" in caplog.text
    assert history(wandb_folder)


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63600000000200015bf5b9ab0000000049454e44ae426082"
)
"""The smallest picture there is."""

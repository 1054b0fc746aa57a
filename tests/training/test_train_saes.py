"""Training SAEs from the command line, on a tiny model."""

import json

import pytest
import torch

from conftest import tiny_overrides
from saematch.core.results import Results
from saematch.lm.states import HiddenStates
from saematch.sae.formats.saelens import load_saelens
from saematch.training.collect import Collection, open_store
from saematch.training.train_saes import split
from wandb_reader import history

pytestmark = pytest.mark.filterwarnings("ignore")  # SAELens' imports warn

SETTINGS = (
    "task=train_saes",
    "run_id=a",
    "logger=csv",
    "figures=null",
    "layers=[1,2]",
    "dataset.n_texts=null",
    "collection.n_tokens=60",
    "collection.context=12",
    "collection.held_out=8",
    "training.n_features=20",
    "training.target_l0=3.0",
    "training.samples=1600",
    "training.batch=16",
)


def test_train_resume_and_match(cli, tiny, tmp_path):
    message, _ = cli(*SETTINGS)
    assert message is None
    folder = tmp_path / "outputs/train_saes/a"
    results = Results.load(folder / "results.json")
    rows = results.tables.rows("saes")
    assert [row["layer"] for row in rows] == [1, 2]
    assert [row["seed"] for row in rows] == [1, 2]
    curve = [row for row in results.tables.rows("training") if row["layer"] == 1]
    assert [row["samples"] for row in curve] == [50 * 16, 100 * 16]
    assert (folder / "figures/training.png").exists()
    card = (folder / "saes/README.md").read_text()
    assert "| 1 |" in card
    assert "| 2 |" in card

    store = open_store(tmp_path / results.provenance["hidden_states"]["folder"])
    assert store.facts["tokens"] == len(store.layer(1))
    sae = load_saelens(folder / "saes/layer_1", 1, "mine")
    assert sae.origin.mean_l0 == pytest.approx(rows[0]["l0"])
    held_out = split(store.layer(1), Collection(60, 12, held_out=8)).held_out
    x = held_out.rows(torch.arange(8))
    wrong = (sae.reconstruct(x) - x).double().var(0, correction=0).sum()
    explained = 1 - wrong / x.double().var(0, correction=0).sum()
    assert rows[0]["explained_variance"] == pytest.approx(explained.item(), abs=1e-4)

    lost = folder / "saes/layer_2"
    kept = folder / "saes/layer_1/sae_weights.safetensors"
    before, weights = kept.stat().st_mtime_ns, (lost / "sae_weights.safetensors").read_bytes()
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    message, _ = cli(*SETTINGS)
    assert message is None
    assert kept.stat().st_mtime_ns == before
    assert (lost / "sae_weights.safetensors").read_bytes() == weights

    config = json.loads((lost / "cfg.json").read_text())
    config["metadata"]["hidden_states"]["revision"] = "another"
    (lost / "cfg.json").write_text(json.dumps(config))
    message, _ = cli(*SETTINGS)
    assert "layer_2 was trained on other hidden states (revision changed since)" in message

    own = [s for s in tiny_overrides(tiny) if not s.startswith("sae.path")]
    path = f'sae.path="{folder}/saes/layer_{{layer}}"'
    message, _ = cli(path, "run_id=b", "logger=none", base=own)
    assert message is None
    provenance = json.loads((tmp_path / "outputs/match/b/results.json").read_text())["provenance"]
    assert set(provenance["saes"]) == {"1", "2"}


def test_topk_and_refusals(cli, tmp_path, monkeypatch):
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    message, _ = cli(*SETTINGS, "training=topk", "layers=[1]", "logger=wandb")
    assert message is None
    points = [row for row in history(tmp_path / "outputs/train_saes/a/wandb") if "samples" in row]
    assert [row["samples"] for row in points] == [50 * 16, 100 * 16]
    assert points[-1]["training/l0/layer_1"] == pytest.approx(3.0)
    config = json.loads((tmp_path / "outputs/train_saes/a/saes/layer_1/cfg.json").read_text())
    assert (config["architecture"], config["k"]) == ("topk", 3)
    assert config["metadata"]["l0"] == pytest.approx(3.0)
    assert config["metadata"]["threshold_mean"] is None
    for number, (wrong, words) in enumerate(
        (
            ("layers=[9]", "choose some of 0 to 3"),
            ("collection.context=65", "takes at most 64 tokens"),
            ("collection.n_tokens=99999", "only"),
            ("collection.held_out=999", "raise collection.n_tokens"),
        )
    ):
        message, _ = cli(*SETTINGS, wrong, f"run_id=c{number}")
        assert words in message
    message, _ = cli(*SETTINGS, "evaluations=[paths]", "run_id=d")
    assert "task=train_saes matches nothing" in message


def test_rows_of_extreme_norm_are_left_out_and_the_last_held_out():
    x = torch.nn.functional.normalize(torch.randn(40, 4), dim=1)
    x[7] *= 50
    states = HiddenStates((x[:25], x[25:]))
    parts = split(states, Collection(40, 10, held_out=5))
    assert parts.n_outliers == 1
    kept = torch.cat([x[:7], x[8:]])
    assert torch.equal(parts.training.rows(torch.arange(34)), kept[:34])
    assert torch.equal(parts.held_out.rows(torch.arange(5)), kept[34:])
    numbers = torch.tensor([30, 2, 2, 6])
    assert torch.equal(parts.training.rows(numbers), kept[numbers])
    assert torch.equal(states.spread(8), x[::5])


def test_a_disk_that_is_too_full_is_refused_before_work(cli, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 100})())
    message, _ = cli(*SETTINGS)
    assert "but its disk has 0.0 MiB free" in message

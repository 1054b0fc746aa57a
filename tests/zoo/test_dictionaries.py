import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import write_store
from saematch.core.match import Match
from saematch.zoo import dictionaries
from saematch.zoo.dictionaries import FAMILIES, Family, Folders, build_family

N_LAYERS, WIDTH = 3, 32

pytestmark = pytest.mark.filterwarnings("ignore")  # SAELens' imports warn


def family(kind: str, steps: int = 0) -> Family:
    """A family that trains for some steps at each layer, or not at all."""
    samples = 1024 * steps
    return Family(kind, WIDTH, 4, 7, first_samples=samples, next_samples=samples)


@pytest.fixture()
def folders(tmp_path: Path) -> Folders:
    """The same activations at every layer."""
    x = np.random.default_rng(0).normal(size=(2048, 16)).astype(np.float16)
    for name in ("training", "held_out"):
        write_store(tmp_path / name, x, N_LAYERS)
    names = ("training", "held_out", "states", "out")
    return Folders(**{name: tmp_path / name for name in names})


def weights(folders: Folders, built: Family, layer: int) -> dict[str, torch.Tensor]:
    return load_file(folders.out / built.name / f"layer_{layer}" / "sae_weights.safetensors")


def truth(folders: Folders, built: Family, layer: int) -> Match:
    return Match.load(folders.out / built.name / "truth" / f"{layer}-{layer + 1}.safetensors")[0]


def test_truth_of_a_chain_leads_to_the_same_features(folders):
    built = family("chain")
    build_family(built, folders, N_LAYERS)
    for layer in range(N_LAYERS - 1):
        earlier, later = weights(folders, built, layer), weights(folders, built, layer + 1)
        match = truth(folders, built, layer)
        assert match.is_permutation
        columns = match.columns
        assert not torch.equal(earlier["W_dec"], later["W_dec"])
        assert torch.equal(earlier["W_dec"], later["W_dec"][columns])
        assert torch.equal(earlier["W_enc"], later["W_enc"][:, columns])
        assert torch.equal(earlier["threshold"], later["threshold"][columns])
    assert not torch.equal(truth(folders, built, 0).columns, truth(folders, built, 1).columns)


def test_truth_of_mixed_leaves_out_exactly_the_fresh_features(folders):
    built = family("mixed")
    build_family(built, folders, N_LAYERS)
    for layer in range(N_LAYERS - 1):
        earlier, later = weights(folders, built, layer), weights(folders, built, layer + 1)
        match = truth(folders, built, layer)
        assert len(match.rows) == WIDTH - WIDTH // 4
        assert torch.equal(earlier["W_dec"][match.rows], later["W_dec"][match.columns])
        same = (earlier["W_dec"][:, None] == later["W_dec"][None]).all(2)
        assert same.sum() == len(match.rows)


def test_thresholds_are_positive_and_float32_and_the_rest_is_half(folders):
    built = family("independent")
    build_family(built, folders, 1)
    saved = weights(folders, built, 0)
    assert saved["threshold"].dtype == torch.float32
    assert (saved["threshold"] > 0).all()
    assert {saved[n].dtype for n in ("W_enc", "W_dec", "b_enc", "b_dec")} == {torch.float16}


def test_independent_layers_differ_and_have_no_truth(folders):
    built = family("independent")
    build_family(built, folders, N_LAYERS)
    first, second = weights(folders, built, 0), weights(folders, built, 1)
    assert not torch.isclose(
        first["W_dec"].sum(1).sort()[0], second["W_dec"].sum(1).sort()[0]
    ).all()
    assert not (folders.out / built.name / "truth").exists()


def test_only_missing_saes_are_trained(folders, monkeypatch):
    built = family("chain", steps=2)
    build_family(built, folders, N_LAYERS)
    lost = folders.out / built.name / "layer_1"
    before = weights(folders, built, 1)
    metadata = json.loads((lost / "cfg.json").read_text())["metadata"]
    assert metadata["samples"] == 2048
    assert metadata["samples_with_earlier_layers"] == 4096
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"

    shutil.rmtree(lost)
    build_family(built, folders, 2)
    again = weights(folders, built, 1)
    assert all(torch.equal(before[name], again[name]) for name in before)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(dictionaries, "train", refuse)
    build_family(built, folders, N_LAYERS)
    shutil.rmtree(lost)
    build_family(built, folders, N_LAYERS)
    assert lost.exists()


def test_no_two_saes_share_a_seed():
    seeds = [part.seed + layer for part in FAMILIES for layer in range(8)]
    assert len(set(seeds)) == len(seeds)


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="chain, independent, mixed"):
        dataclasses.replace(FAMILIES[0], kind="chained")

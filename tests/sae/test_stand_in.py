"""Stand-ins: scales for folding SAEs without thresholds."""

import json

import pytest
import torch

from conftest import tiny_overrides
from saematch.sae.stand_in import quantiles


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 1.0])
def test_quantiles_are_those_of_each_features_values(quantile):
    g = torch.Generator().manual_seed(0)
    features, values = torch.randint(0, 6, (50,), generator=g), torch.rand(50, generator=g)
    features[features == 4] = 3
    scales = quantiles(features, values, 7, quantile)
    for feature in range(7):
        own = values[features == feature]
        if len(own):
            assert scales[feature].item() == pytest.approx(torch.quantile(own, quantile).item())
        else:
            assert scales[feature].isnan()


@pytest.fixture
def topk(tiny, tmp_path):
    """Write the tiny SAEs as TopK SAEs in SAELens' format."""
    from safetensors.torch import load_file, save_file

    for layer in range(4):
        source, folder = tiny / f"saes/layer_{layer}", tmp_path / f"topk/layer_{layer}"
        folder.mkdir(parents=True)
        config = json.loads((source / "cfg.json").read_text())
        (folder / "cfg.json").write_text(
            json.dumps(
                {**config, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": False}
            )
        )
        tensors = load_file(source / "sae_weights.safetensors")
        del tensors["threshold"]
        save_file(tensors, folder / "sae_weights.safetensors")
    return tmp_path / "topk"


@pytest.mark.filterwarnings("ignore")  # SAELens' imports warn
def test_topk_saes_are_folded_by_the_chosen_stand_in(cli, tiny, topk, tmp_path):
    own = [s for s in tiny_overrides(tiny) if not s.startswith("sae.path")]
    base = [*own, f'sae.path="{topk}/layer_{{layer}}"', "logger=none", "figures=[norms]"]
    message, _ = cli("run_id=a", base=base)
    assert "stand_in=activation" in message
    results = {}
    for choice in ("activation", "decoder_norm"):
        message, _ = cli(f"stand_in={choice}", f"run_id={choice}", base=base)
        assert message is None
        path = tmp_path / f"outputs/match/{choice}/results.json"
        results[choice] = json.loads(path.read_text())
    names = {
        choice: {sae["stand_in_name"] for sae in result["provenance"]["saes"].values()}
        for choice, result in results.items()
    }
    assert names["decoder_norm"] == {"decoder norm"}
    assert all(name.startswith("quantile 0.1 of the positive") for name in names["activation"])
    assert len(names["activation"]) >= 1
    splices = [
        {
            (r["dataset"], r["strategy"], r["arm"], r["source_layer"]): r["explained_variance"]
            for r in result["tables"]["strategies"]
        }
        for result in results.values()
    ]
    same = {cell for cell in splices[0] if cell[1] in ("drop", "reconstruct_current")}
    assert all(splices[0][cell] == splices[1][cell] for cell in same)
    assert any(splices[0][cell] != splices[1][cell] for cell in splices[0] if cell not in same)

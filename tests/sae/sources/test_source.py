import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import random_sae, write_sae
from saematch.sae.formats.saelens import load_saelens
from saematch.sae.sources.source import ZooSaes


def test_a_saelens_folder_means_what_saelens_computes(tmp_path):
    from sae_lens import SAE

    write_sae(tmp_path / "layer_3", random_sae(0), layer=3)
    sae = load_saelens(tmp_path / "layer_3", 3, "mine")
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    theirs = SAE.load_from_disk(tmp_path / "layer_3", device="cpu")
    torch.testing.assert_close(sae.reconstruct(x), theirs(x).detach())
    torch.testing.assert_close(sae.encode(x), theirs.encode(x).detach())
    assert (sae.origin.layer, sae.origin.model_name, sae.origin.mean_l0) == (3, "tiny", 5.0)


def test_a_bias_that_is_taken_from_the_input_goes_into_b_enc(tmp_path):
    from sae_lens import SAE

    write_sae(tmp_path / "a", random_sae(0))
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps({**config, "apply_b_dec_to_input": True}))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    theirs = SAE.load_from_disk(tmp_path / "a", device="cpu")(x).detach()
    torch.testing.assert_close(load_saelens(tmp_path / "a", 0, "mine").reconstruct(x), theirs)


def test_half_precision_weights_come_out_in_float32(tmp_path):
    write_sae(tmp_path / "a", random_sae(0))
    path = tmp_path / "a/sae_weights.safetensors"
    tensors = {k: t if k == "threshold" else t.half() for k, t in load_file(path).items()}
    save_file(tensors, path)
    sae = load_saelens(tmp_path / "a", 0, "mine")
    assert sae.origin.revision.startswith("sha256:")
    assert {t.dtype for t in (sae.W_enc, sae.W_dec, sae.threshold)} == {torch.float32}


def test_the_id_of_explanations_is_taken_from_the_folder_and_tells_no_saes_apart(tmp_path):
    write_sae(tmp_path / "a", random_sae(0))
    without = load_saelens(tmp_path / "a", 0, "mine").origin
    assert without.neuronpedia_id is None
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    config["metadata"]["neuronpedia_id"] = "tiny/0-tinyscope"
    (tmp_path / "a/cfg.json").write_text(json.dumps(config))
    with_id = load_saelens(tmp_path / "a", 0, "mine").origin
    assert with_id.neuronpedia_id == "tiny/0-tinyscope"
    same = dataclasses.replace(with_id, neuronpedia_id=None)
    assert (same, repr(same)) == (with_id, repr(with_id))


def test_a_missing_layer_and_a_missing_set():
    with pytest.raises(ValueError, match="no SAE for layer 8"):
        ZooSaes("chain", 1024, 20).load(8)
    with pytest.raises(ValueError, match="it has: sae=chain sae"):
        ZooSaes("chain", 512, 20).load(0)

"""SAEs on disk in five formats, compared with a plain computation or SAELens' own reader."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import random_sae, write_sae
from saematch.sae.sites import is_skippable
from saematch.sae.sources.disk import SaeFolders

D, F = 6, 20
X = torch.randn(50, D, generator=torch.Generator().manual_seed(3))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def gemma(folder):
    """Write a params.npz; return the SAE that it represents."""
    folder.mkdir(parents=True)
    sae = random_sae(5, D, F)
    arrays = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    arrays["threshold"] = sae.threshold
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in arrays.items()})
    return sae


def test_a_gemma_scope_tree_with_another_sparsity_at_every_layer(tmp_path):
    folders = {}
    for layer, l0 in ((0, 105), (1, 102), (12, 82)):
        folders[layer] = gemma(tmp_path / f"layer_{layer}/width_16k/average_l0_{l0}")
    source = SaeFolders(f"{tmp_path}/layer_{{layer}}/width_16k/average_l0_*")
    assert source.layers() == [0, 1, 12]
    sae = source.load(12)
    torch.testing.assert_close(sae.reconstruct(X), folders[12].reconstruct(X))
    assert (sae.origin.mean_l0, sae.origin.layer, sae.origin.site) == (82.0, 12, "resid_post")
    assert sae.origin.revision.startswith("sha256:")
    by_file = SaeFolders(f"{tmp_path}/layer_{{layer}}/width_16k/*/params.npz").load(12)
    assert torch.equal(by_file.W_enc, sae.W_enc)


def test_several_that_fit_are_offers_and_no_set(tmp_path):
    for l0 in (141, 24):
        gemma(tmp_path / f"layer_2/average_l0_{l0}")
    source = SaeFolders(f"{tmp_path}/layer_{{layer}}/average_l0_*")
    with pytest.raises(ValueError, match=r"2 SAEs match .*average_l0_141, .*average_l0_24; narrow"):
        source.load(2)
    offers = source.offers(2)
    assert [offer.mean_l0 for offer in offers] == [24.0, 141.0]
    assert offers[1].source == SaeFolders(f"{tmp_path}/layer_{{layer}}/average_l0_141")
    assert offers[1].source.load(2).origin.mean_l0 == 141.0
    with pytest.raises(ValueError, match=r"no SAE for layer 3: .*; layers that exist: 2"):
        source.load(3)


@pytest.mark.parametrize(
    ("repository", "site"),
    [("pt-res", "resid_post"), ("pt-mlp", "mlp_out"), ("pt-att", "hook_z"),
     ("pt-transcoders", "transcoder")],
)  # fmt: skip
def test_the_site_of_a_gemma_scope_repository(tmp_path, repository, site):
    gemma(tmp_path / f"gemma-scope-2b-{repository}/layer_3/width_16k/average_l0_7")
    path = f"{tmp_path}/gemma-scope-2b-{repository}/layer_{{layer}}/width_16k/average_l0_7"
    origin = SaeFolders(path).load(3).origin
    assert (origin.site, is_skippable(origin)) == (site, site == "resid_post")


def test_an_sae_of_the_embedding_is_refused(tmp_path):
    gemma(tmp_path / "embedding/width_4k/average_l0_3")
    with pytest.raises(ValueError, match="embedding, which comes before block 0"):
        SaeFolders(f"{tmp_path}/embedding/width_{{layer}}k/average_l0_3").load(4)


def gemma_2(folder, hook, out=None, **more):
    folder.mkdir(parents=True)
    sae = random_sae(5, D, F)
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    tensors = {ours: getattr(sae, name).clone() for ours, name in names.items()}
    save_file({**tensors, "threshold": sae.threshold, **more}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m-pt"}
    write_json(folder / "config.json", {**config, "hf_hook_point_in": hook, **(out or {})})
    return sae


def test_gemma_scope_2(tmp_path):
    folders = gemma_2(tmp_path / "resid_post/layer_5_width_16k_l0_small", "model.layers.5.output")
    source = SaeFolders(f"{tmp_path}/resid_post/layer_{{layer}}_width_16k_l0_small")
    sae = source.load(5)
    torch.testing.assert_close(sae.reconstruct(X), folders.reconstruct(X))
    assert (sae.origin.model_name, sae.origin.mean_l0) == ("gemma-3-270m-pt", None)
    with pytest.raises(ValueError, match="does not state the SAE's mean L0"):
        source.offers(5)
    out = {"hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output"}
    into = "model.layers.5.pre_feedforward_layernorm.output"
    gemma_2(tmp_path / "t/layer_5", into, out, affine_skip_connection=random(D, D))
    assert SaeFolders(f"{tmp_path}/t/layer_{{layer}}").load(5).origin.site == "transcoder"
    gemma_2(tmp_path / "u/layer_5", "model.layers.4.output")
    with pytest.raises(ValueError, match="belongs to layer 4, but it was loaded as layer 5"):
        SaeFolders(f"{tmp_path}/u/layer_{{layer}}").load(5)
    gemma_2(tmp_path / "clt/layer_5", into, out, w_dec=random(F, 3, D))
    with pytest.raises(ValueError, match="is a crosscoder"):
        SaeFolders(f"{tmp_path}/clt/layer_{{layer}}").load(5)


def sparsify(folder, change=None, k=4):
    tensors = {"encoder.weight": random(F, D), "encoder.bias": 0.3 * random(F)}
    tensors |= {"W_dec": random(F, D, seed=1), "b_dec": random(D)}
    config = {"k": k, "num_latents": F, "expansion_factor": 32, "d_in": D, "activation": "topk"}
    write_json(folder / "cfg.json", {**config, **(change or {})})
    save_file(tensors, folder / "sae.safetensors")
    return tensors


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(tmp_path, transcode):
    t = sparsify(tmp_path / "layers.3", {"transcode": transcode, "multi_topk": True})
    write_json(tmp_path / "config.json", {"model": "EleutherAI/pythia-70m"})
    source = SaeFolders(f"{tmp_path}/layers.{{layer}}")
    sae = source.load(3)
    given = X if transcode else X - t["b_dec"]
    top = torch.relu(given @ t["encoder.weight"].T + t["encoder.bias"]).topk(4)
    written = torch.stack([v @ t["W_dec"][i] for v, i in zip(*top, strict=True)]) + t["b_dec"]
    torch.testing.assert_close(sae.reconstruct(X), written)
    assert sae.origin.site == ("transcoder" if transcode else "resid_post")
    assert (sae.origin.model_name, sae.origin.mean_l0, sae.k) == ("pythia-70m", 4.0, 4)
    assert source.offers(3)[0].mean_l0 == 4.0


@pytest.mark.parametrize(
    ("folder", "change", "words"),
    [
        (
            "layers.{layer}",
            {"activation": "groupmax"},
            "'groupmax', which keeps one feature",
        ),
        ("layers.{layer}", {"gram_lookup": True}, "gram_lookup=true"),
        ("layers.{layer}", {"num_latents": 0}, "state 192 features of 6"),
        ("layers.{layer}", {"num_latents": 99}, "state 99 features of 6 numbers"),
        ("embed_tokens{layer}", {}, "embedding, which comes before block 0"),
        ("layers.{layer}_of_9", {}, "contains no layer"),
    ],
)
def test_sparsify_that_has_no_meaning_here(tmp_path, folder, change, words):
    sparsify(tmp_path / folder.replace("{layer}", "3"), change)
    with pytest.raises(ValueError, match=words):
        SaeFolders(f"{tmp_path}/{folder}").load(3)


def dictionary(folder, kind, submodule=None, settings=True, **change):
    """Write an SAE of dictionary_learning."""
    linear = {"encoder.weight": random(F, D), "encoder.bias": 0.2 * random(F)}
    linear["decoder.weight"] = random(D, F, seed=1)
    square = {"W_enc": random(D, F), "b_enc": 0.2 * random(F), "W_dec": random(F, D, seed=1)}
    b_dec, thresholds = {"b_dec": random(D)}, {"threshold": random(F).abs()}
    gates = {"r_mag": 0.3 * random(F), "gate_bias": random(F, seed=2), "mag_bias": random(F)}
    measured = {"threshold": torch.tensor(0.8), "k": torch.tensor(5)}
    tensors = {
        "AutoEncoder": {**linear, "bias": random(D)},
        "GatedAutoEncoder": {**linear, **gates, "decoder_bias": random(D)},
        "JumpReluAutoEncoder": {**square, **b_dec, **thresholds},
        "AutoEncoderTopK": {**linear, **b_dec, **measured},
        "BatchTopKSAE": {**linear, **b_dec, **measured},
        "MatryoshkaBatchTopKSAE": {**square, **b_dec, **measured, "group_sizes": torch.tensor([F])},
        "CrossCoder": {"encoder.weight": random(2, D, F)},
    }[kind]
    if kind == "GatedAutoEncoder":
        del tensors["encoder.bias"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**tensors, **change}, folder / "ae.pt")
    trainer = {"dict_class": kind, "layer": 3, "activation_dim": D, "dict_size": F, "k": 5}
    trainer |= {"lm_name": "EleutherAI/pythia-70m", "submodule_name": submodule}
    if settings:
        write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})


def as_saelens_reads(folder, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo_id, filename, **_: filename)
    read = loaders.dictionary_learning_sae_huggingface_loader_1
    config, state, _ = read("r", str(folder), "cpu")
    config = loaders.handle_config_defaulting(config)
    sae_class, config_class = get_sae_class(config["architecture"])
    sae = sae_class(config_class.from_dict(config))
    sae.load_state_dict(state)
    return sae


@pytest.mark.parametrize(
    "kind",
    ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
     "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
def test_dictionary_learning_as_saelens_reads_it(tmp_path, monkeypatch, kind):
    folder = tmp_path / "layer_3/trainer_0"
    dictionary(folder, kind, "resid_post_layer_3")
    sae = SaeFolders(f"{tmp_path}/layer_{{layer}}/trainer_0").load(3)
    theirs = as_saelens_reads(folder, monkeypatch)
    with torch.no_grad():
        features = theirs.encode(X)
        assert (features > 0).any()
        torch.testing.assert_close(sae.encode(X), features)
        torch.testing.assert_close(sae.reconstruct(X), theirs(X))
    assert (sae.origin.model_name, sae.origin.mean_l0) == ("pythia-70m", 5.0)
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        return
    (folder / "config.json").unlink()  # the class is told from the tensors
    alone = SaeFolders(f"{tmp_path}/layer_{{layer}}/trainer_0").load(3)
    torch.testing.assert_close(alone.reconstruct(X), sae.reconstruct(X))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, "negative threshold"),
        ("BatchTopKSAE", {"settings": False}, "AutoEncoderTopK or BatchTopKSAE have"),
        ("AutoEncoder", {"encoder.weight": random(F, D + 1)}, r"W_enc has shape \(7, 20\)"),
        ("AutoEncoder", {"decoder.weight": random(D, F + 1)}, r"W_dec has shape \(21, 6\)"),
        ("AutoEncoder", {"submodule": "mlp_in_layer_3"}, "reads 'mlp_in_layer_3'; supported are"),
        ("AutoEncoder", {"submodule": "resid_post_layer_4"}, "but its settings state layer 3"),
        ("AutoEncoder", {"encoder.bias": {"a": 1}}, "lacks b_enc"),
        (
            "AutoEncoder",
            {"encoder.bias": pytest.raises},
            "such files are not opened",
        ),
        ("CrossCoder", {}, "span several layers"),
    ],
)
def test_dictionary_learning_that_has_no_meaning_here(tmp_path, kind, change, words):
    dictionary(tmp_path / "3", kind, **change)
    with pytest.raises(ValueError, match=words):
        SaeFolders(f"{tmp_path}/{{layer}}").load(3)


def test_an_mlp_of_dictionary_learning_and_one_for_another_layer(tmp_path):
    dictionary(tmp_path / "3", "AutoEncoder", "mlp_out_layer_3")
    assert SaeFolders(f"{tmp_path}/{{layer}}").load(3).origin.site == "mlp_out"
    dictionary(tmp_path / "4", "AutoEncoder")
    with pytest.raises(ValueError, match="belongs to layer 3, but it was loaded as layer 4"):
        SaeFolders(f"{tmp_path}/{{layer}}").load(4)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "params.npz", "sae.safetensors",
                                  "params.safetensors", "ae.pt"])  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_damaged_files_give_one_line(tmp_path, name, damage):
    folder = tmp_path / "layers.3"
    if name == "sae_weights.safetensors":
        write_sae(folder, random_sae(0), layer=3)
    elif name == "sae.safetensors":
        sparsify(folder)
    elif name == "ae.pt":
        dictionary(folder, "AutoEncoder")
    elif name == "params.npz":
        gemma(folder)
    else:
        gemma_2(folder, "model.layers.3.output")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match="damaged") as raised:
        SaeFolders(f"{tmp_path}/layers.{{layer}}").load(3)
    assert "\n" not in str(raised.value)


def test_missing_settings_and_folders_of_no_sae(tmp_path):
    sparsify(tmp_path / "layers.3")
    (tmp_path / "layers.3/cfg.json").unlink()
    source = SaeFolders(f"{tmp_path}/layers.{{layer}}")
    with pytest.raises(ValueError, match=r"cfg.json cannot be read"):
        source.load(3)
    (tmp_path / "layers.4").mkdir()
    with pytest.raises(ValueError, match=r"must contain exactly one of .* contains none of them"):
        source.load(4)
    gemma(tmp_path / "layers.5")
    np.savez(tmp_path / "layers.5/params.npz", W_enc=np.zeros((D, F), np.float32))
    with pytest.raises(ValueError, match="lacks W_dec, b_dec, b_enc, threshold; it has W_enc"):
        source.load(5)
    write_sae(tmp_path / "layers.6", random_sae(0), layer=6)
    config = json.loads((tmp_path / "layers.6/cfg.json").read_text())
    del config["metadata"]["l0"]
    write_json(tmp_path / "layers.6/cfg.json", config)
    with pytest.raises(ValueError, match="does not state the SAE's mean L0"):
        source.offers(6)


def test_what_reads_the_hidden_state_before_a_block_is_shifted(tmp_path):
    write_sae(tmp_path / "3", random_sae(0), layer=3)
    config = json.loads((tmp_path / "3/cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.3.hook_resid_pre"
    write_json(tmp_path / "3/cfg.json", config)
    with pytest.raises(ValueError, match=r"belongs to layer 2 .*sae.shift=1"):
        SaeFolders(f"{tmp_path}/{{layer}}").load(3)
    source = SaeFolders(f"{tmp_path}/{{layer}}", shift=1)
    assert (source.layers(), source.load(2).origin.layer) == ([2], 2)
    assert source.offers(2)[0].source == source


def test_layers_are_those_that_have_a_folder(tmp_path):
    for name in ("layer_0", "layer_12", "layer_x", "other_3", "[a]_7"):
        (tmp_path / name).mkdir()
    (tmp_path / "layer_5").write_text("no folder")
    assert SaeFolders(f"{tmp_path}/layer_{{layer}}").layers() == [0, 12]
    assert SaeFolders(f"{tmp_path}/[a]_{{layer}}").layers() == [7]
    (tmp_path / "3" / "sae").mkdir(parents=True)
    assert SaeFolders(f"{tmp_path}/{{layer}}/sae").layers() == [3]
    with pytest.raises(ValueError, match=r"must contain \{layer\} once"):
        SaeFolders("saes/layer_3")


def test_a_path_that_matches_nothing_shows_similar_names_first(tmp_path):
    for number in range(9):
        (tmp_path / f"a{number}").mkdir()
    (tmp_path / "my_saes/layer_1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the folder .* contains my_saes, a\d, .*"):
        SaeFolders(f"{tmp_path}/my_sae/layer_{{layer}}").load(0)
    with pytest.raises(ValueError, match=r"my_saes contains layer_1$"):
        SaeFolders(f"{tmp_path}/my_saes/layer{{layer}}").load(0)

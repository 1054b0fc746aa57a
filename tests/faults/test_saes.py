"""SAEs compute exactly what their own library computes, or are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import random_sae, tiny_overrides, write_sae
from sae.sources.test_disk import D, F, X, dictionary, gemma, gemma_2, random, sparsify, write_json
from sae.test_architectures import D as WIDTH
from sae.test_architectures import F as FEATURES
from sae.test_architectures import X as STATES
from sae.test_architectures import new_sae as sae_of_saelens
from saematch.core.pairs import SaeKey
from saematch.matching.arm import Arm
from saematch.matching.matchers import Identity
from saematch.matching.objectives.parts import Parts
from saematch.runs.checks import warn_of_biases
from saematch.sae.folding import fold
from saematch.sae.formats.settings import Fields
from saematch.sae.params import SaeOrigin
from saematch.sae.sites import Hook, read_hook
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.sae.thresholds import threshold_summary

OLD = {
    "architecture": "standard", "d_in": WIDTH, "d_sae": FEATURES, "activation_fn_str": "relu",
    "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
    "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "hook_head_index": None,
    "model_name": "tiny", "dtype": "float32", "device": "cuda", "prepend_bos": True,
    "dataset_path": "some/text", "dataset_trust_remote_code": True, "context_size": 256,
    "normalize_activations": "none", "neuronpedia_id": None, "sae_lens_training_version": "5.10.1",
    "model_from_pretrained_kwargs": {}, "seqpos_slice": [None],
}  # fmt: skip
"""Settings that SAELens 5.10 writes."""
TRAINING = {
    "noise_scale": 0.1, "scale_sparsity_penalty_by_decoder_norm": True, "l1_coefficient": 5.0,
    "normalize_sae_decoder": True, "mse_loss_normalization": "dense_batch", "lp_norm": 1.0,
    "decoder_heuristic_init": True, "init_encoder_as_decoder_transpose": True, "lr": 4e-4,
    "use_ghost_grads": True, "jumprelu_bandwidth": 0.001, "jumprelu_init_threshold": 0.01,
    "hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3, "expansion_factor": 4,
    "b_dec_init_method": "geometric_median", "wandb_project": "mine", "n_batches_in_buffer": 20,
    "feature_sampling_window": 2000, "dead_feature_threshold": 1e-8, "finetuning_method": "scale",
}  # fmt: skip
"""Further settings that SAELens 3.22 writes."""


def old_sae(folder, name="StandardSAE", change=None, **tensors):
    """Write an SAE as SAELens 5.10 does; return it as the current SAELens class."""
    theirs = sae_of_saelens(name, **({"k": 5} if name == "TopKSAE" else {}))
    folder.mkdir(parents=True)
    state = {key: value.detach().clone() for key, value in theirs.state_dict().items()}
    save_file({**state, **tensors}, folder / "sae_weights.safetensors")
    config = {key: value for key, value in {**OLD, **(change or {})}.items() if value != "absent"}
    write_json(folder / "cfg.json", config)
    return theirs


def load(tmp_path, name="{layer}"):
    return SaeFolders(f"{tmp_path}/{name}").load(3)


def refusal(tmp_path, name="{layer}"):
    """Return the message that refuses an SAE."""
    with pytest.raises(ValueError) as raised:
        load(tmp_path, name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("path", "names", "layers"),
    [
        ("run*{layer}", ["run_layer12"], [12]),
        ("*{layer}", ["layer_7", "layer_12", "other"], [7, 12]),
        ("layer_{layer}*", ["layer_12_16k", "layer_012b"], [12]),
        ("layer_{layer}", ["layer_03", "layer_10"], [3, 10]),
        ("a{layer}*", ["a12_16k", "ab3"], [12]),
    ],
)
def test_A3_only_a_whole_number_is_a_layer(tmp_path, path, names, layers):
    for name in names:
        (tmp_path / name).mkdir()
    assert SaeFolders(f"{tmp_path}/{path}").layers() == layers


def test_A3_what_can_be_read_as_two_layers_is_refused(tmp_path):
    write_sae(tmp_path / "l3_w16", random_sae(0), layer=3)
    assert "l3_w16 can be read as layer 3 or 16" in refusal(tmp_path, "*{layer}*")
    assert load(tmp_path, "l{layer}_*").origin.layer == 3
    assert "has a digit next to {layer}" in refusal(tmp_path, "l1{layer}")
    for name in ("layer_3", "layer_03"):
        write_sae(tmp_path / name, random_sae(0), layer=3)
    message = refusal(tmp_path, "layer_{layer}")
    assert message.startswith("2 SAEs match")
    assert "layer_03, " in message


def test_A12_an_sae_of_old_versions_computes_what_it_did(tmp_path):
    theirs = old_sae(tmp_path / "3", change={**TRAINING, "hook_name": "absent"})
    sae = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(STATES), theirs.encode(STATES))
        torch.testing.assert_close(sae.reconstruct(STATES), theirs(STATES))
    assert (sae.origin.site, sae.origin.model_name) == ("resid_post", "tiny")
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    theirs = old_sae(tmp_path / "topk/3", "TopKSAE", topk)
    with torch.no_grad():
        reconstruction = load(tmp_path / "topk").reconstruct(STATES)
        torch.testing.assert_close(reconstruction, theirs(STATES))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str='tanh-relu'"),
        ({"activation_fn_str": "absent", "activation_fn": "gelu"}, "activation_fn='gelu'"),
        ({"activation_fn_str": "topk"}, "activation_fn_str='topk'"),
        ({"activation_fn_kwargs": {"signed": True}}, "activation_fn_kwargs: .* signed=true"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm=true"),
        ({"reshape_activations": "fold"}, "reshape_activations='fold'"),
        ({"input_shift": 0.5, "centre": True}, "field input_shift=0.5, centre=true, which may"),
        ({"finetuning_scaling_factor": True}, "lack scaling_factor"),
        ({"normalize_activations": "cube"}, "cube"),
        ({"sae_lens_version": "new"}, "Invalid version"),
    ],
)
def test_A12_a_field_that_changes_the_computation_is_never_dropped(tmp_path, change, words):
    old_sae(tmp_path / "3", change=change)
    with pytest.raises(ValueError, match=words) as raised:
        load(tmp_path)
    assert str(tmp_path / "3") in str(raised.value)


def test_A12_nor_of_a_release(tmp_path, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import (
        PretrainedSAELookup,
        get_pretrained_saes_directory,
    )

    from saematch.sae.sources.hub import fetch
    from saematch.sae.sources.registry import RegisteredSae, Release

    where = tmp_path / "snapshots/0123"
    ids = {name: name for name in ("relu", "tanh-relu")}
    for name in ids:
        old_sae(where / name, change={"activation_fn_str": name})

    def local(repo_id, filename, force_download=False):
        if not (where / filename).exists():
            raise loaders.EntryNotFoundError(filename)
        return str(where / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    entry = PretrainedSAELookup("old", "a/b", "tiny", None, ids, {}, {}, {}, {}, None)
    monkeypatch.setitem(get_pretrained_saes_directory(), "old", entry)
    saes = {name: RegisteredSae(name, None, None) for name in ids}
    release = Release("old", "a/b", "tiny", "sae_lens", saes)
    assert fetch(release, "relu").revision == "0123"
    with pytest.raises(ValueError, match=r"cfg\.json: activation_fn_str='tanh-relu'"):
        fetch(release, "tanh-relu")


def new_sae(folder, change=None, metadata=None):
    """Write an SAE as the current SAELens does."""
    write_sae(folder, random_sae(0), layer=3)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= metadata or {}
    write_json(folder / "cfg.json", {**config, **(change or {})})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_fn": "tanh-relu"}, "activation_fn='tanh-relu'"),
        ({"architecture": "topk", "k": None}, "does not state k"),
        ({"architecture": "topk", "k": 2.5}, "k=2.5 must be a whole number"),
        ({"threshold_scale": 2}, "threshold_scale=2"),
    ],
)
def test_A12_nor_in_todays_version(tmp_path, change, words):
    new_sae(tmp_path / "3", change)
    path = tmp_path / "3/sae_weights.safetensors"
    if "architecture" in change:
        save_file({n: t for n, t in load_file(path).items() if n != "threshold"}, path)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_A12_what_cannot_change_the_computation_is_taken(tmp_path):
    off = {"centre": None, "shift": False, "scale": 0, "parts": [], "_mine": 1, "comment": "a b"}
    new_sae(tmp_path / "3", off, {"dose": 3, "nested": {"any": [1]}})
    assert torch.equal(load(tmp_path).W_dec, random_sae(0).W_dec)
    new_sae(tmp_path / "b/3", metadata={"sae_lens_version": None})
    assert load(tmp_path / "b").origin.model_name == "tiny"  # the group is read all the same


def test_A12_every_field_that_saelens_writes_is_known():
    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig, SAETrainerConfig
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    from saematch.sae.formats.saelens import REFUSED
    from saematch.sae.formats.saelens_fields import CONFIG
    from saematch.sae.formats.settings import DESCRIPTIVE

    classes = {**SAE_CLASS_REGISTRY, "training": (None, SAETrainerConfig)}
    configs = [config for name, (_, config) in classes.items() if name not in REFUSED]
    training = SAE_TRAINING_CLASS_REGISTRY.items()
    configs += [config for name, (_, config) in training if name not in REFUSED]
    names = {
        field.name
        for config in (*configs, LanguageModelSAERunnerConfig, LoggingConfig)
        for field in dataclasses.fields(config)
    }
    assert names - {*CONFIG.understood, *CONFIG.harmless.split(), *DESCRIPTIVE.split()} == set()


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_A12_a_finetuning_factor_multiplies_activations_before_they_are_decoded(tmp_path, name):
    factor = 0.5 + random(FEATURES).abs()
    change = {"finetuning_scaling_factor": True}
    theirs = old_sae(tmp_path / "3", change=change, **{name: factor})
    sae = load(tmp_path)
    with torch.no_grad():
        features = theirs.encode(STATES)
        torch.testing.assert_close(sae.encode(STATES), features)
        torch.testing.assert_close(sae.reconstruct(STATES), theirs.decode(features * factor))
    theirs = old_sae(tmp_path / "ones/3", **{name: torch.ones(FEATURES)})
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "ones").reconstruct(STATES), theirs(STATES))
    old_sae(tmp_path / "off/3", **{name: factor})
    assert "finetuning_scaling_factor=false" in refusal(tmp_path / "off")


def hyperparams(**change):
    stated = {
        "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post",
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "d_model": D,
        "expansion_factor": 8, "d_sae": F, "bias_init_method": "all_zero", "act_fn": "jumprelu",
        "jump_relu_threshold": 0.35, "norm_activation": "dataset-wise", "top_k": 50, "lp": 1,
        "dataset_average_activation_norm": {"in": 1.7, "out": 1.7}, "use_glu_encoder": False,
        "sparsity_include_decoder_norm": True, "init_decoder_norm": 0.5, "device": "cuda:0",
        "dtype": "torch.bfloat16", "seed": 42, "l1_coefficient": 8e-05, "use_ghost_grads": False,
    }  # fmt: skip
    return {**stated, **change}


def llama_scope(folder, norm=1.0, **change):
    """Write an SAE of Llama Scope with decoder vectors of this norm."""
    decoder = norm * torch.nn.functional.normalize(random(D, F, seed=1), dim=0)
    tensors = {"encoder.weight": random(F, D), "encoder.bias": 0.2 * random(F)}
    tensors |= {"decoder.weight": decoder.contiguous(), "decoder.bias": random(D)}
    (folder / "checkpoints").mkdir(parents=True)
    save_file(tensors, folder / "checkpoints/final.safetensors")
    write_json(folder / "hyperparams.json", hyperparams(**change))
    return tensors


def test_B20_llama_scope_as_saelens_reads_the_same_folder(tmp_path, monkeypatch):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as loaders

    folder = tmp_path / "Llama3_1-8B-Base-L3R-8x"
    llama_scope(folder)

    def local(repo_id, filename, subfolder="", force_download=False):
        return f"{subfolder}/{filename}" if subfolder else filename

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    overrides = {"dtype": "float32"}
    read = loaders.llama_scope_sae_huggingface_loader
    config, state, _ = read("repo", str(folder), "cpu", cfg_overrides=overrides)
    config = loaders.handle_config_defaulting(config)
    theirs = JumpReLUSAE(JumpReLUSAEConfig.from_dict(config))
    theirs.load_state_dict(state)
    theirs.fold_activation_norm_scaling_factor(math.sqrt(D) / 1.7)
    source = SaeFolders(f"{tmp_path}/Llama3_1-8B-Base-L{{layer}}R-8x")
    sae = source.load(3)
    with torch.no_grad():
        features = theirs.encode(X)
        assert 0.05 < (features > 0).float().mean() < 0.9
        torch.testing.assert_close(sae.encode(X), features)
        torch.testing.assert_close(sae.reconstruct(X), theirs(X))
    assert source.offers(3)[0].mean_l0 == 50.0
    assert (sae.origin.model_name, sae.origin.site) == ("Llama-3.1-8B", "resid_post")
    by_file = SaeFolders(f"{tmp_path}/*L{{layer}}R-8x/checkpoints/final.safetensors").load(3)
    assert torch.equal(by_file.W_enc, sae.W_enc)


def test_B20_a_threshold_is_in_units_of_decoder_vectors_of_norm_1(tmp_path):
    """As OpenMOSS' own library reads the files: the vectors are brought to norm 1 first."""
    t = llama_scope(tmp_path / "3", norm=2.0)
    pre = X @ t["encoder.weight"].T + t["encoder.bias"] * 1.7 / math.sqrt(D)
    active = torch.where(2.0 * pre > 0.35, 2.0 * pre, 0.0)
    expected = active @ t["decoder.weight"].T / 2.0 + t["decoder.bias"] * 1.7 / math.sqrt(D)
    torch.testing.assert_close(load(tmp_path).reconstruct(X), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "topk"}, "act_fn='topk'"),
        ({"use_glu_encoder": True}, "use_glu_encoder=True"),
        ({"norm_activation": "token-wise"}, "norm_activation='token-wise'"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder=True"),
        ({"new_trick": 1}, "new_trick=1"),
        ({"jump_relu_threshold": None}, "lacks jump_relu_threshold"),
        ({"dataset_average_activation_norm": {}}, "lacks in"),
        ({"dataset_average_activation_norm": {"in": 0}}, "must be positive"),
    ],
)
def test_B20_settings_of_llama_scope_that_ask_for_another_computation(tmp_path, change, words):
    llama_scope(tmp_path / "3", **change)
    assert words in refusal(tmp_path)


def sparsify_3(folder, **change):
    sparsify(folder / "layers.3", change)
    return folder, "layers.{layer}"


def trainer_3(folder, **change):
    dictionary(folder / "3", "AutoEncoder")
    config = json.loads((folder / "3/config.json").read_text())
    config["trainer"] |= change
    write_json(folder / "3/config.json", config)
    return folder, "{layer}"


def gemma_3(folder, **change):
    gemma_2(folder / "3", "model.layers.3.output")
    config = json.loads((folder / "3/config.json").read_text())
    write_json(folder / "3/config.json", {**config, **change})
    return folder, "{layer}"


@pytest.mark.parametrize(
    ("write", "change", "words"),
    [
        (sparsify_3, {"activation_scale": 2.0}, "cfg.json: .* activation_scale=2.0"),
        (trainer_3, {"activation": "tanh"}, 'config.json: trainer: .* activation="tanh"'),
        (trainer_3, {"dict_class": "TanhAutoEncoder"}, "class 'TanhAutoEncoder'"),
        (gemma_3, {"type": "crosscoder"}, "type='crosscoder'"),
        (gemma_3, {"width": 99}, "state 99 features"),
        (gemma_3, {"input_norm": "rms"}, 'config.json: .* input_norm="rms"'),
    ],
)
def test_A12_unknown_settings_of_other_formats(tmp_path, write, change, words):
    with pytest.raises(ValueError, match=words):
        load(*write(tmp_path, **change))


def test_A12_settings_of_other_formats_that_are_known(tmp_path):
    load(*sparsify_3(tmp_path / "s", signed=False, skip_connection=False, normalize_decoder=True))
    load(*trainer_3(tmp_path / "t", lr=1e-3, l1_penalty=0.1, warmup_steps=1000, wandb_name="mine"))
    published = {"width": F, "l0": 150, "affine_connection": False, "type": "sae"}
    load(*gemma_3(tmp_path / "g", **published, hf_hook_point_out="model.layers.3.output"))


@pytest.mark.parametrize("extra", ["scaling_factor", "W_gate"])
def test_A12_a_tensor_that_is_not_understood_is_never_dropped(tmp_path, extra):
    gemma(tmp_path / "3")
    arrays = dict(np.load(tmp_path / "3/params.npz"))
    np.savez(tmp_path / "3/params.npz", **arrays, **{extra: np.ones(F, np.float32)})
    assert f"does not know the tensor {extra}" in refusal(tmp_path)
    dictionary(tmp_path / "b/3", "AutoEncoder", **{extra: random(F)})
    assert f"does not know the tensor {extra}" in refusal(tmp_path / "b")
    old_sae(tmp_path / "c/3", **{f"{extra}_2": random(F)})
    assert f"{extra}_2" in refusal(tmp_path / "c")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool])
def test_A16_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    dictionary(tmp_path / "a/3", "AutoEncoder", **{"encoder.weight": random(F, D).to(dtype)})
    assert f"W_enc has dtype {name}" in refusal(tmp_path / "a")
    old_sae(tmp_path / "b/3", W_dec=random(FEATURES, WIDTH).to(dtype))
    assert f"W_dec has dtype {name}" in refusal(tmp_path / "b")
    gemma(tmp_path / "c/3")
    arrays = dict(np.load(tmp_path / "c/3/params.npz"))
    arrays["b_enc"] = torch.from_numpy(arrays["b_enc"]).to(dtype).numpy()
    np.savez(tmp_path / "c/3/params.npz", **arrays)
    assert f"b_enc has dtype {name}" in refusal(tmp_path / "c")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn,
                                   torch.float64])  # fmt: skip
def test_A16_floating_point_numbers_of_other_sizes_are_taken(tmp_path, dtype):
    rounded = random(FEATURES, WIDTH).to(dtype)
    old_sae(tmp_path / "3", W_dec=rounded)
    assert torch.equal(load(tmp_path).W_dec, rounded.float())
    rounded = random(F, D).to(dtype)
    dictionary(tmp_path / "b/3", "AutoEncoder", **{"encoder.weight": rounded})
    assert torch.equal(load(tmp_path / "b").W_enc, rounded.float().T)


def test_B12_an_sae_without_features_is_refused(tmp_path):
    empty = {"W_enc": torch.zeros(WIDTH, 0), "W_dec": torch.zeros(0, WIDTH)}
    old_sae(tmp_path / "3", change={"d_sae": 0}, **empty, b_enc=torch.zeros(0))
    assert "has no features to match" in refusal(tmp_path)
    (tmp_path / "g/3").mkdir(parents=True)
    shapes = {"W_enc": (D, 0), "W_dec": (0, D), "b_dec": (D,), "b_enc": (0,), "threshold": (0,)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "g/3/params.npz", **arrays)
    assert "has 0 features of 6 numbers" in refusal(tmp_path / "g")


@pytest.mark.parametrize("value", [["tiny"], {"a": 1}, 7, True])
@pytest.mark.parametrize("field", ["model_name", "hook_name"])
def test_B13_a_field_of_another_type_is_named_with_its_file(tmp_path, field, value):
    new_sae(tmp_path / "3", metadata={field: value})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}/3/cfg.json: metadata: {field}=")
    assert message.endswith("must be text")


@pytest.mark.parametrize(
    ("write", "change", "words"),
    [
        (sparsify_3, {"d_in": "six"}, 'd_in="six" must be a whole number'),
        (sparsify_3, {"k": 2.5}, "k=2.5 must be a whole number"),
        (sparsify_3, {"transcode": "no"}, 'transcode="no" must be true or false'),
        (trainer_3, {"lm_name": ["a"]}, 'trainer: lm_name=["a"] must be text'),
        (trainer_3, {"dict_class": 3}, "trainer: dict_class=3 must be text"),
        (trainer_3, {"layer": [3]}, "trainer: layer=[3] must be a whole number"),
        (gemma_3, {"model_name": {}}, "config.json: model_name={} must be text"),
        (gemma_3, {"hf_hook_point_in": 4}, "hf_hook_point_in=4 must be text"),
    ],
)
def test_B13_in_every_format(tmp_path, write, change, words):
    assert words in refusal(*write(tmp_path, **change))


@pytest.mark.parametrize(
    "change",
    [{"architecture": ["standard"]}, {"metadata": "none"}, {"d_in": "wide"}, {"k": float("nan")},
     {"apply_b_dec_to_input": "yes"}, {"normalize_activations": 3}, {"dtype": 32}],
)  # fmt: skip
def test_B13_in_a_cfg_json(tmp_path, change):
    new_sae(tmp_path / "3", change)
    assert refusal(tmp_path).startswith(f"{tmp_path}/3/cfg.json: {next(iter(change))}=")


@pytest.mark.parametrize("text", ["[" * 100_000, '["a"]', "nothing", '"text"'])
def test_B13_settings_that_are_no_group_of_fields(tmp_path, text):
    new_sae(tmp_path / "3")
    (tmp_path / "3/cfg.json").write_text(text)
    assert f"{tmp_path}/3/cfg.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "site", "layer"),
    [
        ("blocks.3.hook_out", "resid_post", 3),
        ("blocks.4.hook_in", "resid_post", 3),
        ("blocks.3.mlp.hook_out", "mlp_out", 3),
        ("blocks.3.attn.hook_out", "attn_out", 3),
        ("blocks.3.attn.o.hook_in", "hook_z", 3),
        ("blocks.3.mlp.hook_in", None, 3),
    ],
)
def test_B17_hooks_of_transformer_lens_3(name, site, layer):
    assert read_hook(name) == Hook(site, layer)


def test_B17_the_names_are_those_of_transformer_lens():
    from transformer_lens.model_bridge.generalized_components import BlockBridge

    of_block = BlockBridge.hook_aliases
    for old, new in of_block.items():
        if old in ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out"):
            assert read_hook(f"blocks.3.{old}") == read_hook(f"blocks.3.{new}")


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("model.layers.3", "resid_post"),
        ("transformer.h.3", "resid_post"),
        ("gpt_neox.layers.3", "resid_post"),
        ("model.layers.3.mlp", "mlp_out"),
        ("gpt_neox.layers.3.attention", "attn_out"),
        ("resid_post_layer_3", "resid_post"),
    ],
)
def test_B18_dictionary_learnings_own_names(tmp_path, submodule, site):
    load_here = trainer_3(tmp_path, submodule_name=submodule, layer="3")
    assert load(*load_here).origin.site == site


def test_B18_what_the_buffer_read_of_a_module(tmp_path):
    for io, layer in (("in", 4), ("out", 3)):
        folder, _ = trainer_3(tmp_path / io, submodule_name=f"model.layers.{layer}", layer=layer)
        config = json.loads((folder / "3/config.json").read_text())
        write_json(folder / "3/config.json", {**config, "buffer": {"io": io, "ctx_len": 128}})
        assert load(folder).origin.site == "resid_post"
    trainer_3(tmp_path / "b", submodule_name="model.layers.4", layer="4")
    assert "belongs to layer 4, but it was loaded as layer 3" in refusal(tmp_path / "b")
    trainer_3(tmp_path / "c", submodule_name="model.layers.3", layer="4")
    assert "settings state layer 4" in refusal(tmp_path / "c")


def test_B22_entries_that_are_no_tensors_do_not_make_a_file_damaged(tmp_path):
    dictionary(tmp_path / "a/3", "AutoEncoder")
    expected = load(tmp_path / "a").reconstruct(X)
    beside = {"run": "mine", "config": {"lr": 1e-3, "betas": [0.9, 0.99]}, "none": None}
    dictionary(tmp_path / "b/3", "AutoEncoder", **beside, lr=1e-3)
    assert torch.equal(load(tmp_path / "b").reconstruct(X), expected)
    dictionary(tmp_path / "c/3", "AutoEncoder", config={"dict_class": "AutoEncoderNew"})
    assert 'ae.pt states dict_class="AutoEncoderNew" next to its tensors' in refusal(tmp_path / "c")
    made_here = gemma(tmp_path / "d/3")
    arrays = dict(np.load(tmp_path / "d/3/params.npz"))
    more = {"names": np.array(["a", "b"]), "about": np.array({"lr": 1}, dtype=object)}
    big_endian = {name: array.astype(">f4") for name, array in arrays.items()}
    np.savez(tmp_path / "d/3/params.npz", **big_endian, **more)
    torch.testing.assert_close(load(tmp_path / "d").reconstruct(X), made_here.reconstruct(X))


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (lambda folder: write_sae(folder, random_sae(0), layer=3),
         ("sae_weights.safetensors", "cfg.json")),
        (gemma, ("params.npz",)),
        (lambda folder: gemma_2(folder, "model.layers.3.output"),
         ("params.safetensors", "config.json")),
        (sparsify, ("sae.safetensors", "cfg.json")),
        (lambda folder: dictionary(folder, "AutoEncoder"), ("ae.pt", "config.json")),
        (llama_scope, ("checkpoints/final.safetensors", "hyperparams.json")),
    ],
)  # fmt: skip
def test_B22_a_git_lfs_pointer_is_named_as_one(tmp_path, write, names):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 302123456\n"
    for name in names:
        folder = tmp_path / name.replace("/", "_") / "layers.3"
        write(folder)
        (folder / name).write_text(pointer)
        message = refusal(folder.parent, "layers.{layer}")
        assert message.startswith(f"{folder / name} is a git-lfs pointer")
        assert "'git lfs pull'" in message


def test_B26_messages_name_the_folder_that_was_loaded(tmp_path):
    theirs = old_sae(tmp_path / "layer_3/run")
    where = f"{tmp_path}/layer_3/run"
    sae = load(tmp_path, "layer_{layer}/run")
    with pytest.raises(ValueError, match=f"^SAE {where} has no thresholds"):
        fold(sae, "threshold")
    with pytest.raises(ValueError, match=f"^SAE {where}: activation 'tanh'"):
        dataclasses.replace(sae, activation="tanh")
    assert theirs.W_dec.shape == (FEATURES, WIDTH)
    dictionary(tmp_path / "layer_3/ae", "AutoEncoder", **{"bias": random(D + 1)})
    message = refusal(tmp_path, "layer_{layer}/ae")
    assert message.startswith(f"SAE {tmp_path}/layer_3/ae: b_dec has shape (7,)")
    here = SaeOrigin(3, "a", "b", "c")
    assert here == dataclasses.replace(here, path="elsewhere")
    assert repr(here) == repr(dataclasses.replace(here, path="elsewhere"))


def test_A18_the_share_of_biases_in_the_compared_vectors():
    sae = random_sae(0)
    scale = torch.full((sae.n_features,), 0.01)
    origin = dataclasses.replace(sae.origin, stand_in_name="low")
    relu = dataclasses.replace(
        sae, threshold=None, activation="relu", stand_in=scale, origin=origin
    )
    folded = fold(relu, "threshold")
    b_enc, W_enc, W_dec = (part.square().sum() for part in (folded.b_enc, folded.W_enc,
                                                            folded.W_dec))  # fmt: skip
    share = threshold_summary(relu)["bias_share"]
    assert share == pytest.approx((b_enc / (b_enc + W_enc + W_dec)).item(), rel=1e-5)
    assert (
        threshold_summary(dataclasses.replace(sae, threshold=-sae.threshold))["bias_share"] is None
    )


@pytest.mark.filterwarnings("ignore")  # SAELens' imports warn
def test_A18_a_match_of_biases_alone_gives_a_warning_with_the_remedy(cli, tiny, tmp_path):
    for layer in range(4):
        sae = random_sae(layer)
        sae = dataclasses.replace(sae, b_enc=3.0 + sae.b_enc)
        write_sae(tmp_path / f"relu/layer_{layer}", sae, layer=layer)
        folder = tmp_path / f"relu/layer_{layer}"
        config = json.loads((folder / "cfg.json").read_text())
        write_json(folder / "cfg.json", {**config, "architecture": "standard"})
        weights = load_file(folder / "sae_weights.safetensors")
        del weights["threshold"]
        save_file(weights, folder / "sae_weights.safetensors")
    own = [s for s in tiny_overrides(tiny) if not s.startswith("sae.path")]
    base = [*own, f'sae.path="{tmp_path}/relu/layer_{{layer}}"', "logger=none", "figures=[]",
            "evaluations=[co_activation]", "layers=[0,1]", "stand_in=activation"]  # fmt: skip
    message, output = cli("stand_in.quantile=0.0", "run_id=low", base=base)
    assert message is None
    assert BIASED in " ".join((output.out + output.err).split())
    results = json.loads((tmp_path / "outputs/match/low/results.json").read_text())
    assert all(row["bias_share"] > 0.5 for row in results["tables"]["layers"])


BIASED = "so the match of all parts is a match of the biases: set objective=decoder"


@pytest.mark.parametrize(
    ("scale", "parts", "expected"),
    [(0.01, Parts(), True), (1.0, Parts(), False), (0.01, Parts(W_enc=0.0, b_enc=0.0), False)],
)
def test_A18_only_arms_that_compare_biases_give_the_warning(caplog, scale, parts, expected):
    sae = random_sae(0)
    origin = dataclasses.replace(sae.origin, stand_in_name="made up")
    stand_in = torch.full((sae.n_features,), scale)
    relu = dataclasses.replace(
        sae, b_enc=3.0 + sae.b_enc, threshold=None, activation="relu", stand_in=stand_in,
        origin=origin,
    )  # fmt: skip
    arms = {"folded": Arm("threshold", parts, Identity())}
    warn_of_biases(SaeShelf.of({SaeKey("released", 0): relu}), arms)
    assert (BIASED in caplog.text) == expected


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" + "0" * 5000, "NaN", "Infinity"])
def test_B13_a_number_beyond_all_floats_is_refused_in_one_line(tmp_path, number):
    path = tmp_path / "config.json"
    path.write_text('{"activation_dim": 4, "scale": ' + number + "}")
    with pytest.raises(ValueError) as caught:
        Fields({"activation_dim": int, "scale": float}).read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400

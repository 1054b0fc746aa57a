"""SAEs saved by SAELens compute the same here in every gauge, or are refused with a reason."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from saematch.sae.folding import fold, threshold_kind
from saematch.sae.formats.saelens import from_saelens, load_saelens
from saematch.sae.params import SaeOrigin
from saematch.sae.sites import Hook, is_skippable, read_hook, skipping_refusal

D, F = 12, 40
HOOK = "blocks.3.hook_resid_post"
X = torch.randn(64, D, generator=torch.Generator().manual_seed(9))


def new_sae(name, hook=HOOK, seed=0, **options):
    """Return a SAELens SAE with random parameters; ``name`` starts its class name."""
    import sae_lens.saes as classes
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(model_name="tiny", hook_name=hook)
    config = getattr(classes, f"{name}Config")(d_in=D, d_sae=F, metadata=metadata, **options)
    sae = getattr(classes, name)(config)
    g = torch.Generator().manual_seed(seed)
    for key, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=g) * (0.3 if "W" in key else 0.5)
    return sae


def same_as_theirs(sae, theirs, x=X, given=None):
    with torch.no_grad():
        given = x if given is None else given
        features = theirs.encode(given)
        written = theirs.decode(features).reshape(x.shape)
    assert 0.02 < (features > 0).float().mean() < 0.9
    torch.testing.assert_close(sae.encode(x), features)
    torch.testing.assert_close(sae.reconstruct(x), written)
    stand_in = torch.empty(F).log_normal_(0, 1, generator=torch.Generator().manual_seed(4))
    origin = dataclasses.replace(sae.origin, stand_in_name="made up")
    positive = sae.threshold is not None and bool((sae.threshold > 0).all())
    for variant in (sae, dataclasses.replace(sae, stand_in=stand_in, origin=origin)):
        for by in ("decoder_norm", "threshold"):
            if variant is sae and by == "threshold" and not positive:
                continue
            folded = fold(variant, by)
            torch.testing.assert_close(folded.reconstruct(x), written)
            again = fold(folded, "decoder_norm")  # a gauge on top of a gauge
            torch.testing.assert_close(again.reconstruct(x), written)


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("JumpReLUSAE", {}, "per feature"),
        ("StandardSAE", {}, "none"),
        ("GatedSAE", {}, "per feature"),
        ("TopKSAE", {"k": 5}, "none"),
        ("TopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}, "none"),
    ],
)
def test_every_architecture_means_what_saelens_computes(tmp_path, name, options, kind, subtract):
    theirs = new_sae(name, apply_b_dec_to_input=subtract, **options)
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    same_as_theirs(sae, theirs)
    assert (sae.k, sae.origin.site, threshold_kind(sae)) == (options.get("k"), "resid_post", kind)
    assert sae.origin.mean_l0 == options.get("k")


def test_one_threshold_for_all_features(tmp_path):
    theirs = new_sae("JumpReLUSAE", apply_b_dec_to_input=False)
    theirs.threshold.data[:] = 0.7
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    same_as_theirs(sae, theirs)
    assert threshold_kind(sae) == "one for all"


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ["BatchTopKTrainingSAE", "MatryoshkaBatchTopKTrainingSAE"])
def test_a_checkpoint_is_the_sae_that_training_would_end_with(tmp_path, name, rescale):
    from sae_lens import SAE

    widths = {"matryoshka_widths": [10, F]} if "Matryoshka" in name else {}
    training = new_sae(name, k=6, rescale_acts_by_decoder_norm=rescale, **widths)
    training.topk_threshold.fill_(0.6)
    training.save_model(tmp_path / "checkpoint")
    training.save_inference_model(tmp_path / "end")
    sae = load_saelens(tmp_path / "checkpoint", 3, "mine")
    same_as_theirs(sae, SAE.load_from_disk(tmp_path / "end"))
    same_as_theirs(load_saelens(tmp_path / "end", 3, "mine"), SAE.load_from_disk(tmp_path / "end"))


def test_an_old_checkpoint_with_logarithms_of_thresholds(tmp_path):
    theirs = new_sae("JumpReLUTrainingSAE", apply_b_dec_to_input=False)
    theirs.threshold.data.abs_()
    theirs.save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, path)
    same_as_theirs(load_saelens(tmp_path, 3, "mine"), theirs)


@pytest.mark.parametrize("name", ["JumpReLUSAE", "GatedSAE", "TopKSAE", "BatchTopKTrainingSAE"])
@pytest.mark.parametrize("norm", ["expected_average_only_in", "covariance_whitening"])
def test_a_measured_normalisation_is_undone(tmp_path, name, norm):
    from sae_lens import SAE
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    more = {"k": 6, "rescale_acts_by_decoder_norm": True} if "TopK" in name else {}
    theirs = new_sae(name, normalize_activations=norm, **more)
    if name == "BatchTopKTrainingSAE":
        theirs.topk_threshold.fill_(0.4)
    theirs.save_model(tmp_path)
    matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(1)).double()
    whitening = ActivationWhitening(X[0].double(), matrix, torch.linalg.inv(matrix))
    factor = norm == "expected_average_only_in"
    scaler = ActivationScaler(0.4 if factor else None, None if factor else whitening)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    if name == "BatchTopKTrainingSAE":
        theirs.save_inference_model(tmp_path / "end")
        theirs = SAE.load_from_disk(tmp_path / "end")
    with torch.no_grad():
        written = scaler.unscale(theirs(scaler.scale(X)))
    sae = load_saelens(tmp_path, 3, "mine")
    torch.testing.assert_close(sae.reconstruct(X), written, rtol=1e-4, atol=1e-4)


def test_a_model_with_centred_writing_weights(tmp_path):
    theirs = new_sae("StandardSAE", apply_b_dec_to_input=True)
    theirs.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    centred = X - X.mean(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(sae.reconstruct(X), theirs(centred))
    assert not torch.allclose(sae.reconstruct(X), theirs(X))


def test_hidden_states_normalised_token_by_token_are_for_matching_alone(tmp_path):
    theirs = new_sae("TopKSAE", k=4, normalize_activations="layer_norm")
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    normal = (X - X.mean(1, keepdim=True)) / X.std(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(normal), theirs.encode(X), atol=1e-4, rtol=1e-4)
    assert re.search("standard deviation 1, token by token", skipping_refusal(sae.origin))


def test_heads_are_read_flattened(tmp_path):
    theirs = new_sae("StandardSAE", "blocks.3.attn.hook_z", reshape_activations="hook_z")
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    same_as_theirs(sae, theirs, given=X.reshape(len(X), 3, D // 3))
    assert (sae.origin.site, is_skippable(sae.origin)) == ("hook_z", False)
    assert re.search(
        r"attention heads .*\(site hook_z\), so its features", skipping_refusal(sae.origin)
    )


@pytest.mark.parametrize(
    "name",
    ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"],
)
def test_transcoders_are_for_matching_alone(tmp_path, name):
    hook = "blocks.3.ln2.hook_normalized"
    theirs = new_sae(name, hook, d_out=D, apply_b_dec_to_input=False)
    theirs.save_model(tmp_path)
    sae = load_saelens(tmp_path, 3, "mine")
    same_as_theirs(sae, theirs)  # their decode leaves the skip connection out too
    assert sae.origin.site == "transcoder"
    assert re.search(
        r"one place and writes another .*evaluations=\[\]", skipping_refusal(sae.origin)
    )
    narrow = new_sae(name, hook, d_out=D - 2, apply_b_dec_to_input=False)
    with pytest.raises(ValueError, match="reads 12 numbers and writes 10"):
        from_saelens(narrow, SaeOrigin(3, "mine", "a"))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("AbsTopKSAE", {"k": 4}, "'abstopk', whose activations may be negative"),
        ("MatchingPursuitSAE", {}, "'matching_pursuit', which has no encoder"),
        (
            "StandardSAE",
            {"normalize_activations": "constant_norm_rescale"},
            "differs between tokens",
        ),
        ("StandardSAE", {"normalize_activations": "expected_average_only_in"}, "factor is missing"),
        ("StandardSAE", {"normalize_activations": "covariance_whitening"}, "matrices are missing"),
        ("StandardSAE", {"hook": "hook_embed"}, "embedding, which comes before block 0"),
        ("StandardSAE", {"hook": "blocks.0.hook_resid_pre"}, "before block 0"),
        ("StandardSAE", {"hook": "blocks.3.hook_resid_pre"}, "belongs to layer 2"),
        ("StandardSAE", {"hook": "blocks.3.hook_mlp_in"}, "none of the known sites"),
        ("StandardSAE", {"hook": "logits"}, "contains no layer"),
    ],
)
def test_what_has_no_meaning_here_is_refused(tmp_path, name, options, words):
    theirs = new_sae(name, **options)
    with pytest.raises(ValueError, match=words):
        from_saelens(theirs, SaeOrigin(3, "mine", "a"))
    theirs.save_model(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_saelens(tmp_path, 3, "mine")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("temporal", "reads earlier tokens"),
        ("crosscoder", "span several layers"),
        ("new", "not supported; choose one of jumprelu, standard"),
    ],
)
def test_architectures_that_cannot_be_opened_are_refused(tmp_path, architecture, words):
    new_sae("StandardSAE").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "architecture": architecture}))
    with pytest.raises(ValueError, match=words):
        load_saelens(tmp_path, 3, "mine")


def test_a_decoder_over_several_layers_is_a_crosscoder():
    theirs = new_sae("StandardSAE")
    theirs.W_dec.data = torch.zeros(F, 2, D)
    with pytest.raises(ValueError, match="is a crosscoder"):
        from_saelens(theirs, SaeOrigin(3, "mine", "a"))


@pytest.mark.parametrize(
    ("name", "site", "layer"),
    [
        ("blocks.2.hook_resid_post", "resid_post", 2),
        ("blocks.2.hook_resid_pre", "resid_post", 1),
        ("blocks.2.hook_resid_mid", "resid_mid", 2),
        ("blocks.2.hook_mlp_out", "mlp_out", 2),
        ("blocks.2.hook_attn_out", "attn_out", 2),
        ("model.layers.12", "resid_post", 12),
        ("model.layers.12.output", "resid_post", 12),
        ("gpt_neox.layers.4.mlp", "mlp_out", 4),
        ("transformer.h.5", "resid_post", 5),
        ("model.layers.2.self_attn.o_proj.input", "hook_z", 2),
        ("model.layers.2.post_feedforward_layernorm.output", "mlp_out", 2),
        ("blocks.2.mlp.hook_in", None, 2),
    ],
)
def test_hooks_by_the_names_of_both_libraries(name, site, layer):
    assert read_hook(name) == Hook(site, layer)

"""Reader of SAELens' format: each of its architectures is supported or refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.files import content_hash
from saematch.sae.architectures import NEEDED, to_sae_params, unit_decoder
from saematch.sae.formats.reading import present, read_tensors, required_l0
from saematch.sae.formats.saelens_fields import CONFIG, METADATA, check_computation
from saematch.sae.formats.settings import Fields, read_json
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import NORMALISED, RESIDUAL, TRANSCODER, check_hook, warn_unstated

WEIGHTS = "sae_weights.safetensors"
SUPPORTED = {
    "jumprelu": "jumprelu",
    "standard": "standard",
    "gated": "gated",
    "topk": "topk",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Way of encoding of each architecture; skip connections are not part of the features."""
REFUSED = {
    "abstopk": "whose activations may be negative, so one feature represents two directions",
    "temporal": "which also reads earlier tokens, so one hidden state does not determine features",
    "matching_pursuit": "which has no encoder: it searches for active features one by one",
}
"""Reasons why architectures cannot be converted to ``SaeParams``."""
TRAINED = ("batchtopk", "matryoshka_batchtopk")
"""Architectures during training, which become JumpReLU SAEs with one threshold at its end."""
NORMALISATIONS = {
    "constant_norm_rescale": "which differs between tokens, so weights cannot include it",
    "expected_average_only_in": "but its factor is missing; fold the factor into the weights "
    "(fold_activation_norm_scaling_factor of SAELens) and save the SAE again",
    "covariance_whitening": "but its matrices are missing; fold them into the weights "
    "(fold_activation_whitening of SAELens) and save the SAE again",
}
"""Reasons why a normalisation cannot be undone unless SAELens has folded it into the weights."""
LAYER_NORM = "layer_norm"
"""Normalisation of each token, which restricts the SAE to matching by weights."""
_SCALER = "activation_scaler.json"
_KIND = Fields({"architecture": str}, closed=False)
_SCALE = Fields({"scaling_factor": float}, "has_whitening")
_WHITENING = "activation_whitening.safetensors"


def load_saelens(folder: Path, layer: int, release: str) -> SaeParams:
    """Load a SAELens folder; ``InputError`` if it is missing, damaged or not supported.

    A training checkpoint is converted to the SAE that the training would have saved at its end.
    """
    for path in (folder / "cfg.json", folder / WEIGHTS):
        if not path.exists():
            raise InputError(f"no SAE for layer {layer}: {path} does not exist")
    where = f"the SAE in {folder}"
    config = read_saelens_config(folder / "cfg.json")
    tensors = _weights(where, folder, config)
    try:
        sae = _open(folder, config, tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{where}: SAELens cannot load it ({reason}); cfg.json and the weights are damaged or "
            "do not match"
        ) from error
    check_computation(str(folder / "cfg.json"), config, sae.cfg.architecture())
    _undo_normalisation(sae, folder)
    used = [folder / name for name in (WEIGHTS, "cfg.json", _SCALER, _WHITENING)]
    origin = SaeOrigin(layer, release, folder.name, content_hash(present(*used)), path=str(folder))
    return from_saelens(_for_inference(sae), origin)


def read_saelens_config(path: Path) -> dict[str, Any]:
    """Return the fields of a ``cfg.json`` that are not null, in the form that SAELens reads.

    Raises ``InputError`` for an unsupported architecture and for unknown fields, which may change
    what the SAE computes.
    """
    fields = read_json(path)
    architecture = _KIND.checked(str(path), fields).get("architecture", "standard")
    if architecture not in TRAINED:
        _check_architecture(f"the SAE in {path.parent}", architecture)
    config = {**fields, **CONFIG.checked(str(path), fields), "architecture": architecture}
    config = {name: value for name, value in config.items() if value is not None}
    old = "hook_name" in config or "hook_point" in config
    if "metadata" in config:
        group = {name: value for name, value in config["metadata"].items() if value is not None}
        metadata = {name: config[name] for name in METADATA.understood if name in config}
        metadata |= {**group, **METADATA.checked(f"{path}: metadata", group)}
        if not old:
            metadata.setdefault("sae_lens_version", "6.0.0")  # or SAELens ignores the group
        config["metadata"] = metadata
    return config


def _weights(where: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, with the factor of finetuning folded into the decoder.

    SAELens before version 6 multiplied activations by it before decoding; later versions do not
    load such an SAE.
    """
    tensors = read_tensors(folder / WEIGHTS).tensors
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"{where}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, but "
                "weights are floating-point numbers; save the SAE in float32"
            )
        if not tensor.numel():
            raise InputError(f"{where}: {name} is empty, so the SAE has no features to match")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    names = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    factors = [factor for factor in (tensors.pop(name) for name in names) if (factor != 1).any()]
    if factors and not config.get("finetuning_scaling_factor"):
        raise InputError(
            f"{where}: the weights contain {names[0]}, but cfg.json states "
            "finetuning_scaling_factor=false, so it is unclear whether the factor applies"
        )
    if config.get("finetuning_scaling_factor") and not names:
        raise InputError(
            f"{where}: cfg.json states finetuning_scaling_factor=true, but the weights lack "
            "scaling_factor"
        )
    for factor in factors:
        tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    return tensors


def _open(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return the SAE as SAELens loads it: for inference, or in training."""
    from sae_lens import SAE, TrainingSAE

    def converter(path: Path, device: str, cfg_overrides: Mapping[str, Any]) -> tuple[Any, Any]:
        return {**config, **cfg_overrides, "device": device}, dict(tensors)

    in_training = config["architecture"] in TRAINED or "log_threshold" in tensors
    kind = TrainingSAE if in_training else SAE
    with without_advice():
        return kind.load_from_disk(folder, device="cpu", dtype="float32", converter=converter)


def _for_inference(sae: Any) -> Any:
    """Return the SAE for inference; convert an SAE in training as the end of training would."""
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, TrainingSAE):
        return sae
    state = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    with without_advice():
        inference_sae = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    inference_sae.load_state_dict(state)
    return inference_sae


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence SAELens' advice on models with centred weights, which ``from_saelens`` handles."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        yield


def _undo_normalisation(sae: Any, folder: Path) -> None:
    """Fold a checkpoint's activation statistics into its weights, as training does at its end."""
    if not (folder / _SCALER).exists():
        return
    factor = _SCALE.read(folder / _SCALER).get("scaling_factor")
    normalised = sae.cfg.normalize_activations
    if normalised == "expected_average_only_in" and factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    if normalised == "covariance_whitening" and (folder / _WHITENING).exists():
        parts = read_tensors(folder / _WHITENING).tensors
        sae.fold_activation_whitening(parts["mean"], parts["matrix"], parts["inverse_matrix"])


def stated_l0(folder: Path) -> float:
    """Return the mean L0 stated in a SAELens folder; ``InputError`` if there is none."""
    config = read_saelens_config(folder / "cfg.json")
    kwargs = config.get("activation_fn_kwargs", {})
    l0 = config.get("metadata", {}).get("l0", config.get("k", kwargs.get("k")))
    return float(required_l0(folder, l0))


def from_saelens(sae: Any, origin: SaeOrigin) -> SaeParams:
    """Convert a SAELens SAE to ``SaeParams``; ``InputError`` if that is impossible.

    ``origin`` is the SAE's source; SAELens' metadata are added to it. Its layer is the block that
    the site belongs to: block 2 for ``blocks.3.hook_resid_pre``.

    In a model with centred writing weights, an SAE reads hidden states minus their mean over
    coordinates. Subtracting the mean of each column of ``W_enc`` has the same effect on raw hidden
    states. The decoded states have mean 0, which the model's LayerNorms ignore.
    """
    where = f"the SAE {origin.where}"
    architecture = sae.cfg.architecture()
    _check_architecture(where, architecture)
    normalised = sae.cfg.normalize_activations
    if normalised not in ("none", LAYER_NORM):
        reason = NORMALISATIONS.get(normalised, "which is not supported")
        raise InputError(f"{where} has normalize_activations={normalised!r}, {reason}")
    metadata = sae.cfg.metadata
    transcoder = "transcoder" in architecture
    site = TRANSCODER if transcoder else RESIDUAL
    if metadata.hook_name:
        site = check_hook(where, metadata.hook_name, origin.layer, transcoder=transcoder)
    elif not transcoder:
        warn_unstated(f"{where} (layer {origin.layer})")
    if normalised == LAYER_NORM:
        site = NORMALISED
    needed = NEEDED[SUPPORTED[architecture]]  # SAELens loads only these and skip connections
    tensors = {name: tensor for name, tensor in sae.state_dict().items() if name in needed}
    k = sae.cfg.k if architecture == "topk" else None
    if k is not None and k != int(k):
        raise InputError(f"{where}: k={k} must be a whole number")
    k = None if k is None else int(k)
    if k is not None and sae.cfg.rescale_acts_by_decoder_norm:
        tensors = unit_decoder(tensors)
    l0 = k if metadata.l0 is None else metadata.l0
    origin = replace(
        origin,
        model_name=metadata.model_name or "",
        mean_l0=None if l0 is None else float(l0),
        site=site,
        neuronpedia_id=metadata.neuronpedia_id or None,
    )
    subtract = sae.cfg.apply_b_dec_to_input and not transcoder
    params = to_sae_params(SUPPORTED[architecture], tensors, origin, subtract_b_dec=subtract, k=k)
    if (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        params = replace(params, W_enc=params.W_enc - params.W_enc.mean(0))
    return params


def _check_architecture(where: str, architecture: str) -> None:
    if architecture in SUPPORTED:
        return
    reason = REFUSED.get(architecture, "which is not supported")
    if "crosscoder" in architecture:
        reason = "whose features already span several layers, so there is nothing to match"
    raise InputError(
        f"{where} is of architecture {architecture!r}, {reason}; choose one of "
        f"{', '.join(SUPPORTED)}"
    )

"""SAEs in SAELens' format: every architecture that it can load, or the reason against it."""

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
from saematch.sae.formats.reading import present, read_tensors, told
from saematch.sae.formats.saelens_fields import CONFIG, METADATA, check_computation
from saematch.sae.formats.settings import Fields, read_json
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import NORMALISED, RESIDUAL, TRANSCODER, check_hook, warn_unstated

WEIGHTS = "sae_weights.safetensors"
TAKEN = {
    "jumprelu": "jumprelu",
    "standard": "standard",
    "gated": "gated",
    "topk": "topk",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""How each architecture encodes; a skip connection is no part of the features."""
REFUSED = {
    "abstopk": "whose activations may be negative, so a feature is two directions and no one",
    "temporal": "which reads earlier tokens too, so that no hidden state alone gives its features",
    "matching_pursuit": "which has no encoder: what is active is searched for, one by one",
}
"""Why an architecture cannot be brought to the one meaning."""
TRAINED = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of checkpoints alone, which end as JumpReLU SAEs with one threshold."""
NORMALISATIONS = {
    "constant_norm_rescale": "which depends on each token, so no weights on hidden states do the "
    "same",
    "expected_average_only_in": "but the factor is not with it; fold the factor into its weights "
    "(fold_activation_norm_scaling_factor of SAELens) and save it again",
    "covariance_whitening": "but the matrices are not with it; fold them into its weights "
    "(fold_activation_whitening of SAELens) and save it again",
}
"""Why a normalisation that SAELens has not folded into the weights cannot be undone."""
LAYER_NORM = "layer_norm"
"""The normalisation that differs from token to token: such an SAE is matched by weights alone."""
_SCALER = "activation_scaler.json"
_KIND = Fields({"architecture": str}, closed=False)
_SCALE = Fields({"scaling_factor": float}, "has_whitening")
_WHITENING = "activation_whitening.safetensors"


def load_saelens(folder: Path, layer: int, release: str) -> SaeParams:
    """Load a SAELens folder; ``InputError`` if it is missing, damaged or of a kind not taken.

    A checkpoint of training is taken as the SAE that training would have ended with.
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
            "do not belong together"
        ) from error
    check_computation(str(folder / "cfg.json"), config, sae.cfg.architecture())
    _undo_normalisation(sae, folder)
    used = [folder / name for name in (WEIGHTS, "cfg.json", _SCALER, _WHITENING)]
    origin = SaeOrigin(layer, release, folder.name, content_hash(present(*used)), path=str(folder))
    return from_saelens(_ended(sae), origin)


def read_saelens_config(path: Path) -> dict[str, Any]:
    """Return the fields of a ``cfg.json`` that are not null, as SAELens is to read them.

    Raises ``InputError`` for an architecture that is not taken, and for fields that may change what
    the SAE computes and are not understood.
    """
    fields = read_json(path)
    architecture = _KIND.checked(str(path), fields).get("architecture", "standard")
    if architecture not in TRAINED:
        _check_architecture(f"the SAE in {path.parent}", architecture)
    config = {**fields, **CONFIG.checked(str(path), fields), "architecture": architecture}
    config = {name: value for name, value in config.items() if value is not None}
    old = "hook_name" in config or "hook_point" in config
    if "metadata" in config:
        own = {name: value for name, value in config["metadata"].items() if value is not None}
        metadata = {name: config[name] for name in METADATA.understood if name in config}
        metadata |= {**own, **METADATA.checked(f"{path}: metadata", own)}
        if not old:
            metadata.setdefault("sae_lens_version", "6.0.0")  # else SAELens leaves the group out
        config["metadata"] = metadata
    return config


def _weights(where: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, the factor of finetuning worked into the decoder.

    SAELens before version 6 multiplied activations by it before decoding; SAELens now does not
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
            f"{where}: the weights hold {names[0]}, but cfg.json states "
            "finetuning_scaling_factor=false, so it is not known whether the factor counts"
        )
    if config.get("finetuning_scaling_factor") and not names:
        raise InputError(
            f"{where}: cfg.json states finetuning_scaling_factor=true, but the weights do not hold "
            "scaling_factor"
        )
    for factor in factors:
        tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    return tensors


def _open(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return SAELens' SAE, or the one in training."""
    from sae_lens import SAE, TrainingSAE

    def converter(path: Path, device: str, cfg_overrides: Mapping[str, Any]) -> tuple[Any, Any]:
        return {**config, **cfg_overrides, "device": device}, dict(tensors)

    in_training = config["architecture"] in TRAINED or "log_threshold" in tensors
    kind = TrainingSAE if in_training else SAE
    with without_advice():
        return kind.load_from_disk(folder, device="cpu", dtype="float32", converter=converter)


def _ended(sae: Any) -> Any:
    """Return an SAE, and of one in training what it would have ended as."""
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, TrainingSAE):
        return sae
    state = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    with without_advice():
        ended = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    ended.load_state_dict(state)
    return ended


@contextmanager
def without_advice() -> Iterator[None]:
    """Keep SAELens from advising how to load a model with centred weights: they are seen to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        yield


def _undo_normalisation(sae: Any, folder: Path) -> None:
    """Fold what a checkpoint measured of the activations into the weights, as training ends."""
    if not (folder / _SCALER).exists():
        return
    factor = _SCALE.read(folder / _SCALER).get("scaling_factor")
    normalised = sae.cfg.normalize_activations
    if normalised == "expected_average_only_in" and factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    if normalised == "covariance_whitening" and (folder / _WHITENING).exists():
        of = read_tensors(folder / _WHITENING).tensors
        sae.fold_activation_whitening(of["mean"], of["matrix"], of["inverse_matrix"])


def stated_l0(folder: Path) -> float:
    """Return the mean L0 that a SAELens folder states, ``InputError`` if there is none."""
    config = read_saelens_config(folder / "cfg.json")
    kwargs = config.get("activation_fn_kwargs", {})
    l0 = config.get("metadata", {}).get("l0", config.get("k", kwargs.get("k")))
    return float(told(folder, l0))


def from_saelens(sae: Any, origin: SaeOrigin) -> SaeParams:
    """Bring a SAELens SAE to the one meaning of ``SaeParams``; refuse what has no such meaning.

    ``origin`` states where it came from; what SAELens knows of the SAE is added. Its layer is the
    block that the site belongs to: block 2 for ``blocks.3.hook_resid_pre``. An SAE of a model with
    centred writing weights read hidden states less their mean over coordinates; taking that mean
    from ``W_enc``'s columns does the same to hidden states as they are. What it decodes has mean 0,
    which the model's LayerNorms cannot tell.
    """
    where = f"the SAE {origin.where}"
    architecture = sae.cfg.architecture()
    _check_architecture(where, architecture)
    normalised = sae.cfg.normalize_activations
    if normalised not in ("none", LAYER_NORM):
        reason = NORMALISATIONS.get(normalised, "which is not known here")
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
    needed = NEEDED[TAKEN[architecture]]  # SAELens loads no others, but skip connections
    tensors = {name: tensor for name, tensor in sae.state_dict().items() if name in needed}
    k = sae.cfg.k if architecture == "topk" else None
    if k is not None and k != int(k):
        raise InputError(f"{where}: k={k}, but TopK keeps a whole number of features")
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
    params = to_sae_params(TAKEN[architecture], tensors, origin, subtract_b_dec=subtract, k=k)
    if (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        params = replace(params, W_enc=params.W_enc - params.W_enc.mean(0))
    return params


def _check_architecture(where: str, architecture: str) -> None:
    if architecture in TAKEN:
        return
    reason = REFUSED.get(architecture, "which is not known here")
    if "crosscoder" in architecture:
        reason = "whose features span several layers already, so there is nothing to match"
    raise InputError(
        f"{where} is of architecture {architecture!r}, {reason}; choose one of {', '.join(TAKEN)}"
    )

"""SAEs in SAELens' format: every architecture that it can load, or the reason against it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from saematch.files import content_hash
from saematch.sae.architectures import to_sae_params, unit_decoder
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.reading import present, read_config, told
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
_WHITENING = "activation_whitening.safetensors"


def load_saelens(folder: Path, layer: int, release: str) -> SaeParams:
    """Load a SAELens folder; ``ValueError`` if it is missing, damaged or of a kind not taken.

    A checkpoint of training is taken as the SAE that training would have ended with.
    """
    for path in (folder / "cfg.json", folder / WEIGHTS):
        if not path.exists():
            raise ValueError(f"no SAE for layer {layer}: {path} does not exist")
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        architecture = config.get("architecture", "standard")
        if architecture not in TRAINED:
            _check_architecture(f"the SAE in {folder}", architecture)
        sae = _open(folder, architecture)
    except (SafetensorError, json.JSONDecodeError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the SAE in {folder} is damaged or incomplete ({reason}); fetch or train it again"
        ) from error
    used = [folder / name for name in (WEIGHTS, "cfg.json", _SCALER, _WHITENING)]
    return from_saelens(sae, layer, release, folder.name, content_hash(present(*used)))


def _open(folder: Path, architecture: str) -> Any:
    from sae_lens import SAE, TrainingSAE

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        in_training = architecture in TRAINED or "log_threshold" in set(file.keys())
    kind = TrainingSAE if in_training else SAE
    with without_advice():
        sae = kind.load_from_disk(folder, device="cpu", dtype="float32")
    _undo_normalisation(sae, folder)
    if not in_training:
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
    from sae_lens.training.activation_scaler import ActivationScaler

    scaler = ActivationScaler()
    scaler.load(folder / _SCALER)
    normalised = sae.cfg.normalize_activations
    if normalised == "expected_average_only_in" and scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if normalised == "covariance_whitening" and scaler.whitening is not None:
        of = scaler.whitening
        sae.fold_activation_whitening(of.mean, of.matrix, of.inverse_matrix)


def stated_l0(folder: Path) -> float:
    """Return the mean L0 that a SAELens folder states, ``ValueError`` if there is none."""
    config = read_config(folder / "cfg.json", needed=("metadata",))
    return float(told(folder, config["metadata"].get("l0", config.get("k"))))


def from_saelens(sae: Any, layer: int, release: str, sae_id: str, revision: str) -> SaeParams:
    """Bring a SAELens SAE to the one meaning of ``SaeParams``; refuse what has no such meaning.

    ``layer`` is the block that its site belongs to: block 2 for ``blocks.3.hook_resid_pre``. An SAE
    of a model with centred writing weights read hidden states less their mean over coordinates;
    taking that mean from ``W_enc``'s columns does the same to hidden states as they are. What it
    decodes has mean 0, which the model's LayerNorms cannot tell.
    """
    where = f"the SAE {release}/{sae_id}"
    architecture = sae.cfg.architecture()
    _check_architecture(where, architecture)
    normalised = sae.cfg.normalize_activations
    if normalised not in ("none", LAYER_NORM):
        reason = NORMALISATIONS.get(normalised, "which is not known here")
        raise ValueError(f"{where} has normalize_activations={normalised!r}, {reason}")
    metadata = sae.cfg.metadata
    transcoder = "transcoder" in architecture
    site = TRANSCODER if transcoder else RESIDUAL
    if metadata.hook_name:
        site = check_hook(where, metadata.hook_name, layer, transcoder=transcoder)
    elif not transcoder:
        warn_unstated(f"{where} (layer {layer})")
    if normalised == LAYER_NORM:
        site = NORMALISED
    tensors = dict(sae.state_dict())
    k = sae.cfg.k if architecture == "topk" else None
    if k is not None and sae.cfg.rescale_acts_by_decoder_norm:
        tensors = unit_decoder(tensors)
    l0 = k if metadata.l0 is None else metadata.l0
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=sae_id,
        revision=revision,
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
    raise ValueError(
        f"{where} is of architecture {architecture!r}, {reason}; choose one of {', '.join(TAKEN)}"
    )

"""Reader of Llama Scope's SAEs: ``checkpoints/final.safetensors`` and ``hyperparams.json``.

The weights act on hidden states times ``s = sqrt(d_model) / norm``, where ``norm`` is the mean norm
of hidden states stated in the settings. All features share one threshold, which refers to raw
hidden states and to decoder vectors of norm 1. Folding ``s`` into the weights, as SAELens does,
multiplies the threshold by ``s``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.files import content_hash
from saematch.sae.architectures import to_sae_params
from saematch.sae.formats.reading import check_size, read_tensors, renamed, required_l0
from saematch.sae.formats.settings import Fields
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import check_hook

WEIGHTS = "checkpoints/final.safetensors"
HYPERPARAMS = Fields(
    {"d_model": int, "d_sae": int, "hook_point_in": str, "hook_point_out": str, "act_fn": str,
     "jump_relu_threshold": float, "dataset_average_activation_norm": dict, "top_k": float,
     "norm_activation": str, "use_decoder_bias": bool, "use_glu_encoder": bool,
     "apply_decoder_bias_to_pre_encoder": bool, "sparsity_include_decoder_norm": bool},
    "bias_init_method ddp_size decoder_exactly_fixed_norm device dtype expansion_factor "
    "init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose k_warmup_steps "
    "l1_coefficient l1_coefficient_warmup_steps lp tp_size use_batch_norm_mse "
    "use_ghost_grads",
)  # fmt: skip
"""Fields of ``hyperparams.json``."""
_NEEDED = ("d_model", "d_sae", "jump_relu_threshold", "dataset_average_activation_norm",
           "hook_point_in")  # fmt: skip
_NORMS = Fields({"in": float, "out": float})
_LEGAL: Mapping[str, str | bool] = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "apply_decoder_bias_to_pre_encoder": False,
}
"""Settings that change what the SAE computes, with their only supported values."""
_UNIT = 0.01
"""Tolerance for decoder norms of 1, since the files are in bfloat16."""
_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}


def load_llama_scope(folder: Path, layer: int, release: str) -> SaeParams:
    """Load one SAE; ``InputError`` if it is damaged or its settings are not supported."""
    where, path = f"the SAE in {folder}", folder / "hyperparams.json"
    settings = llama_scope_settings(path)
    norms = _NORMS.checked(
        f"{path}: dataset_average_activation_norm",
        settings["dataset_average_activation_norm"],
        needed=("in",),
    )
    if min(norms.values()) <= 0:
        raise InputError(f"{path}: dataset_average_activation_norm={norms} must be positive")
    held = read_tensors(folder / WEIGHTS).tensors
    tensors = renamed(held, _NAMES)
    check_size(where, tensors, settings["d_model"], settings["d_sae"])
    hook = settings["hook_point_in"]
    transcoder = settings.get("hook_point_out", hook) != hook
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash([folder / WEIGHTS, path]),
        model_name="Llama-3.1-8B" if folder.name.startswith("Llama3_1-8B") else "",
        mean_l0=settings.get("top_k"),
        site=check_hook(where, hook, layer, transcoder=transcoder),
        path=str(folder),
    )
    sizes = [math.sqrt(settings["d_model"]) / norms.get(end, norms["in"]) for end in ("in", "out")]
    return to_sae_params(
        "jumprelu", _on_raw_states(tensors, settings, *sizes), origin, subtract_b_dec=False
    )


def _on_raw_states(
    tensors: dict[str, Tensor], settings: Mapping[str, Any], read: float, written: float
) -> dict[str, Tensor]:
    """Return the tensors with the factors on inputs and outputs folded in."""
    if not {"W_enc", "W_dec", "b_dec"} <= tensors.keys():
        return tensors
    theta = torch.tensor(settings["jump_relu_threshold"] * read)
    norm = torch.linalg.vector_norm(tensors["W_dec"].float(), dim=1) * (read / written)
    unit = bool(((norm - 1).abs() <= _UNIT).all())
    if settings.get("sparsity_include_decoder_norm") and not unit:
        theta = theta / torch.where(norm > 0, norm, 1.0)
    return {
        **tensors,
        "W_enc": tensors["W_enc"].float() * read,
        "W_dec": tensors["W_dec"].float() / written,
        "b_dec": tensors["b_dec"].float() / written,
        "threshold": theta,
    }


def llama_scope_settings(path: Path) -> dict[str, Any]:
    """Return the known settings; ``InputError`` if they are unknown or not supported."""
    settings = HYPERPARAMS.read(path, needed=_NEEDED)
    for name, legal in _LEGAL.items():
        if settings.get(name, legal) != legal:
            raise InputError(
                f"{path}: {name}={settings[name]!r}, but saematch supports only {name}={legal!r}"
            )
    return settings


def llama_scope_l0(folder: Path) -> float:
    """Return ``top_k``; ``InputError`` if there is none."""
    return required_l0(folder, llama_scope_settings(folder / "hyperparams.json").get("top_k"))

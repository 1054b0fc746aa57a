"""SAEs as dictionary_learning has them on disk: ``trainer_0/ae.pt`` beside ``config.json``.

Taken for granted of the layout: ``encoder.weight`` is ``[F, d]`` and ``decoder.weight`` ``[d, F]``,
but ``W_enc`` and ``W_dec`` are as here. ``AutoEncoderNew`` encodes ``x``, ``JumpReluAutoEncoder``
too unless its settings say ``apply_b_dec_to_input``, all others ``x`` minus the decoder's bias.
BatchTopK and matryoshka SAEs are at inference JumpReLU with one threshold, negative until it was
measured. ``resid_post_layer_3`` is the output of block 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saematch.files import content_hash
from saematch.sae.architectures import to_sae_params
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.reading import (
    check_size,
    present,
    read_config,
    read_tensors,
    renamed,
    short_name,
    told,
)
from saematch.sae.sites import check_hook, warn_unstated

CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
"""How each class encodes."""
_NAMES = {
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "decoder.bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
_HOOKS = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
}


def load_dictionary_learning(folder: Path, layer: int, release: str) -> SaeParams:
    """Load one SAE; ``ValueError`` if it is damaged or of a class not taken.

    Opened weights-only, so that nothing in the file can run.
    """
    where, path, trainer = f"the SAE in {folder}", folder / "ae.pt", _trainer(folder)
    found = read_tensors(path)
    kind = trainer.get("dict_class") or _class_of(where, found)
    if kind not in CLASSES:
        reason = ", whose features span several layers already" if "Cross" in kind else ""
        raise ValueError(
            f"{where} is of class {kind!r}{reason}; choose one of {', '.join(CLASSES)}"
        )
    tensors = renamed(found, _NAMES)
    if "activation_dim" in trainer and "dict_size" in trainer:
        check_size(where, tensors, trainer["activation_dim"], trainer["dict_size"])
    k = tensors.get("k", trainer.get("k"))
    if CLASSES[kind] == "topk" and k is None:
        raise ValueError(f"{where} is of class {kind}, but neither ae.pt nor config.json has its k")
    if kind.endswith("BatchTopKSAE"):
        _check_measured(where, tensors)
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash(present(path, folder / "config.json")),
        model_name=short_name(trainer.get("lm_name")),
        mean_l0=None if k is None else float(k),
        site=check_hook(where, _hook(where, trainer, layer), layer),
    )
    subtract = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return to_sae_params(
        CLASSES[kind],
        tensors,
        origin,
        subtract_b_dec=trainer.get("apply_b_dec_to_input", subtract),
        k=int(k) if CLASSES[kind] == "topk" else None,
    )


def dictionary_learning_l0(folder: Path) -> float:
    """Return the ``k`` of the settings, ``ValueError`` if there is none."""
    return told(folder, _trainer(folder).get("k"))


def _trainer(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_config(path, needed=("trainer",))["trainer"] if path.exists() else {}


def _class_of(where: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the class whose tensors these are, for folders without settings."""
    marks = {
        "decoder_bias": "GatedAutoEncoder",
        "group_sizes": "MatryoshkaBatchTopKSAE",
        "bias": "AutoEncoder",
        "decoder.bias": "AutoEncoderNew",
    }
    for mark, kind in marks.items():
        if mark in tensors:
            return kind
    if "W_enc" in tensors and "threshold" in tensors:
        return "JumpReluAutoEncoder"
    either = "AutoEncoderTopK or BatchTopKSAE, which have tensors of the same names"
    raise ValueError(
        f"{where} does not tell its class, {either if 'k' in tensors else 'and no known one fits'}"
        f" (it has {', '.join(sorted(tensors))}); put its config.json beside it"
    )


def _check_measured(where: str, tensors: Mapping[str, Tensor]) -> None:
    if "threshold" in tensors and bool((tensors["threshold"] < 0).any()):
        raise ValueError(
            f"{where} has a negative threshold: training stopped before it was measured, so which "
            "features are active is not known; train it longer"
        )


def _hook(where: str, trainer: Mapping[str, Any], layer: int) -> str:
    """Return the hook's name as TransformerLens has it."""
    if not trainer.get("submodule_name"):
        warn_unstated(where)
    submodule = trainer.get("submodule_name") or f"resid_post_layer_{trainer.get('layer', layer)}"
    parts = re.fullmatch(r"(\w+?)_layer_?(\d+)", submodule)
    if parts is None or parts[1] not in _HOOKS:
        raise ValueError(
            f"{where} reads {submodule!r}; known are {', '.join(f'{h}_layer_3' for h in _HOOKS)}"
        )
    if "layer" in trainer and int(parts[2]) != trainer["layer"]:
        raise ValueError(
            f"{where} reads {submodule}, but its settings state layer {trainer['layer']}"
        )
    return f"blocks.{parts[2]}.{_HOOKS[parts[1]]}"

"""Reader of dictionary_learning's SAEs: ``trainer_0/ae.pt`` next to ``config.json``.

Assumptions about the layout:

- ``encoder.weight`` is ``[F, d]`` and ``decoder.weight`` is ``[d, F]``, but tensors with the names
  ``W_enc`` and ``W_dec`` have the orientation of ``SaeParams``.
- ``AutoEncoderNew`` encodes ``x``, and so does ``JumpReluAutoEncoder`` unless its settings have
  ``apply_b_dec_to_input``. All others encode ``x`` minus the decoder's bias.
- At inference, BatchTopK and matryoshka SAEs are JumpReLU SAEs with one threshold. It is negative
  until training has measured it.
- ``resid_post_layer_3`` is the output of block 3. So is the module ``model.layers.3``, unless the
  buffer's ``io`` states that its input was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.files import content_hash
from saematch.sae.architectures import to_sae_params
from saematch.sae.formats.reading import (
    check_size,
    present,
    read_tensors,
    renamed,
    required_l0,
    short_name,
)
from saematch.sae.formats.settings import Fields, refuse_contradiction
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import check_hook, warn_unstated

SETTINGS = Fields({"trainer": dict, "buffer": dict}, closed=False)
"""Fields of ``config.json``; its other groups describe the training."""
TRAINER = Fields(
    {"dict_class": str, "activation_dim": int, "dict_size": int, "k": int, "layer": int,
     "lm_name": str, "submodule_name": str, "apply_b_dec_to_input": bool},
    "anneal_end anneal_start auxk_alpha bandwidth compile decay_start device dtype entropy "
    "group_fractions group_sizes group_weights initial_sparsity_penalty k_anneal_steps "
    "l1_penalty lr max_steps n_sparsity_updates norm_factor optimizer p_end p_start "
    "resample_steps sparsity_function sparsity_penalty sparsity_queue_length "
    "sparsity_warmup_steps steps target_l0 threshold_beta threshold_start_step top_k_aux "
    "trainer_class wandb_name warmup_steps",
)  # fmt: skip
"""Fields of the group ``trainer``. Training divides activations by ``norm_factor``; the biases
in the file already include it."""
_BUFFER = Fields({"io": str}, closed=False)
_IGNORED = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k",),
    "MatryoshkaBatchTopKSAE": ("k", "group_sizes"),
}
"""Tensors of each class that are not read: TopK's threshold belongs to another way of encoding, and
matryoshka's groups are only used in training."""

CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
"""Architecture of each class."""
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
    """Load one SAE; ``InputError`` if it is damaged or of an unsupported class.

    The file is opened weights-only, so that it cannot run code.
    """
    where, path, trainer = (
        f"the SAE in {folder}",
        folder / "ae.pt",
        trainer_settings(folder / "config.json"),
    )
    held = read_tensors(path)
    kind = trainer.get("dict_class") or _class_of(where, held.tensors)
    if kind not in CLASSES:
        reason = ", whose features already span several layers" if "Cross" in kind else ""
        raise InputError(
            f"{where} is of class {kind!r}{reason}; choose one of {', '.join(CLASSES)}"
        )
    refuse_contradiction(path, held.other, {**trainer, "dict_class": kind})
    tensors = renamed(held.tensors, _NAMES)
    check_size(where, tensors, trainer.get("activation_dim"), trainer.get("dict_size"))
    k = tensors.get("k", trainer.get("k"))
    if CLASSES[kind] == "topk" and k is None:
        raise InputError(f"{where} is of class {kind}, but neither ae.pt nor config.json has its k")
    if kind.endswith("BatchTopKSAE"):
        _check_measured(where, tensors)
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash(present(path, folder / "config.json")),
        model_name=short_name(trainer.get("lm_name")),
        mean_l0=None if k is None else float(k),
        site=_site(where, trainer, folder, layer),
        path=str(folder),
    )
    subtract = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return to_sae_params(
        CLASSES[kind],
        tensors,
        origin,
        subtract_b_dec=trainer.get("apply_b_dec_to_input", subtract),
        k=None if k is None or CLASSES[kind] != "topk" else int(k),
        ignored=(*_IGNORED.get(kind, ()), *TRAINER.harmless.split()),
    )


def dictionary_learning_l0(folder: Path) -> float:
    """Return the ``k`` in the settings; ``InputError`` if there is none."""
    return required_l0(folder, trainer_settings(folder / "config.json").get("k"))


def trainer_settings(path: Path) -> dict[str, Any]:
    """Return the trainer's known settings in ``config.json``; empty without the file.

    Raises ``InputError`` for unknown settings, which may change what the SAE computes.
    """
    if not path.exists():
        return {}
    return TRAINER.checked(f"{path}: trainer", SETTINGS.read(path, needed=("trainer",))["trainer"])


def _class_of(where: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the class that has these tensors, for folders without settings."""
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
    either = "AutoEncoderTopK or BatchTopKSAE have tensors of these names"
    raise InputError(
        f"{where} does not state its class: {either if 'k' in tensors else 'no known class fits'}"
        f" (it has {', '.join(sorted(tensors))}); put its config.json next to it"
    )


def _check_measured(where: str, tensors: Mapping[str, Tensor]) -> None:
    if "threshold" in tensors and bool((tensors["threshold"] < 0).any()):
        raise InputError(
            f"{where} has a negative threshold: training stopped before it measured the threshold, "
            "so the active features are unknown; train it longer"
        )


def _site(where: str, trainer: Mapping[str, Any], folder: Path, layer: int) -> str:
    """Return the site; ``InputError`` if the SAE is of another layer or an unknown site."""
    path, hook = folder / "config.json", _hook(where, trainer, layer)
    buffer = _BUFFER.checked(f"{path}: buffer", SETTINGS.read(path).get("buffer", {}))
    io = buffer.get("io", "out")
    if io == "out" or (io == "in" and hook.endswith(_HOOKS["resid_pre"])):
        return check_hook(where, hook, layer)
    if io == "in_and_out":
        return check_hook(where, hook, layer, transcoder=True)
    if io == "in" and not hook.startswith("blocks."):
        return check_hook(where, f"{hook}.input", layer)
    raise InputError(
        f"{where} reads {io!r} of {trainer.get('submodule_name')!r}, which is not supported; "
        "supported are 'out', and 'in' and 'in_and_out' of a module such as model.layers.3"
    )


def _hook(where: str, trainer: Mapping[str, Any], layer: int) -> str:
    """Return the hook's name in TransformerLens or Hugging Face."""
    if not trainer.get("submodule_name"):
        warn_unstated(where)
    submodule = trainer.get("submodule_name") or f"resid_post_layer_{trainer.get('layer', layer)}"
    parts = re.fullmatch(r"(\w+?)_layer_?([0-9]+)", submodule)
    module = re.fullmatch(r"(?:\w+\.)+([0-9]+)(?:\.[\w.]+)?", submodule)
    if module is not None:
        hook, number = submodule, int(module[1])
    elif parts is not None and parts[1] in _HOOKS:
        number = int(parts[2])
        hook = f"blocks.{number}.{_HOOKS[parts[1]]}"
    else:
        raise InputError(
            f"{where} reads {submodule!r}; supported are "
            f"{', '.join(f'{h}_layer_3' for h in _HOOKS)} and modules such as model.layers.3"
        )
    if trainer.get("layer", number) != number:
        raise InputError(
            f"{where} reads {submodule}, but its settings state layer {trainer['layer']}"
        )
    return hook

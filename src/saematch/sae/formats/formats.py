"""Readers of Gemma Scope's and sparsify's SAEs.

Each reader documents its assumptions about the layout, and checks shapes against the settings if
the folder has them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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

GEMMA_SCOPE = Fields(
    {"architecture": str, "type": str, "model_name": str, "width": int, "affine_connection": bool,
     "hf_hook_point_in": str, "hf_hook_point_out": str},
    "l0",
)  # fmt: skip
"""Fields of ``config.json`` in Gemma Scope 2."""
SPARSIFY = Fields(
    {"d_in": int, "num_latents": int, "expansion_factor": int, "k": int, "activation": str,
     "transcode": bool, "signed": bool, "embed_skip": bool, "gram_lookup": bool},
    "normalize_decoder multi_topk skip_connection lookup_max_order gram_table_hash",
)  # fmt: skip
"""Fields of sparsify's ``cfg.json``. The decoder is normalised only in training, a skip connection
appears among the tensors, and n-gram tables are used only with ``gram_lookup``."""
_SPARSIFY_RUN = Fields({"model": str}, closed=False)

_PLACES = {
    "hook_embed": r"embedding",
    "attn.hook_z": r".*-att|attn_out(_all)?",
    "hook_mlp_out": r".*-mlp|mlp_out(_all)?",
    "hook_mlp_in": r".*-transcoders|transcoder(_all)?|clt(_all)?",
}
"""Hooks by the name of the folder above, in Gemma Scope 1 and 2; others are residual streams."""


def load_gemma_scope(folder: Path, layer: int, release: str) -> SaeParams:
    """Load ``params.npz``, or ``params.safetensors`` with ``config.json`` (Gemma Scope 2).

    The site is read from ``config.json``, or else from the folders above, such as
    ``gemma-scope-2b-pt-mlp`` in Gemma Scope and ``mlp_out`` in Gemma Scope 2.
    """
    path = next(p for p in (folder / "params.npz", folder / "params.safetensors") if p.exists())
    where, config = f"the SAE in {folder}", gemma_scope_settings(folder / "config.json")
    held = read_tensors(path)
    refuse_contradiction(path, held.other, {"architecture": "jump_relu", **config})
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in held.tensors.items()}
    check_size(where, tensors, None, config.get("width"))
    hook_in_path = _hook_in_path(folder, layer)
    hook = config.get("hf_hook_point_in", hook_in_path)
    transcoder = (
        config.get("hf_hook_point_out") not in (None, hook)
        or config.get("type") == "transcoder"
        or config.get("affine_connection", False)
        or "affine_skip_connection" in tensors
        or hook_in_path.endswith("hook_mlp_in")
    )
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash(present(path, folder / "config.json")),
        model_name=short_name(config.get("model_name")),
        mean_l0=_l0_in_name(folder),
        site=check_hook(where, hook, layer, transcoder=transcoder),
        path=str(folder),
    )
    ignored = ("affine_skip_connection",)
    return to_sae_params("jumprelu", tensors, origin, subtract_b_dec=False, ignored=ignored)


def gemma_scope_settings(path: Path) -> dict[str, Any]:
    """Return the known settings in ``config.json``; empty without the file.

    Raises ``InputError`` for unknown settings and for a computation that is not supported.
    """
    config = GEMMA_SCOPE.read(path)
    for field, legal in (("architecture", ("jump_relu",)), ("type", ("sae", "transcoder"))):
        if config.get(field, legal[0]) not in legal:
            raise InputError(
                f"{path}: {field}={config[field]!r}, but saematch supports only "
                f"{' and '.join(legal)}"
            )
    return config


def _hook_in_path(folder: Path, layer: int) -> str:
    above = folder.absolute().parts[-6:]
    places = (p for p, names in _PLACES.items() if any(re.fullmatch(names, a) for a in above))
    place = next(places, "")
    if not place:
        warn_unstated(f"the SAE in {folder}")
        place = "hook_resid_post"
    numbers = (re.match(r"layer_(\d+)", part) for part in reversed(above))
    number = next((match[1] for match in numbers if match), layer)
    return place if place == "hook_embed" else f"blocks.{number}.{place}"


def gemma_scope_l0(folder: Path) -> float:
    """Return the mean L0 in the folder's name; ``InputError`` if there is none."""
    return required_l0(folder, _l0_in_name(folder))


def _l0_in_name(folder: Path) -> float | None:
    match = re.search(r"average_l0_(\d+)", folder.name)
    return float(match[1]) if match else None


def load_sparsify(folder: Path, layer: int, release: str) -> SaeParams:
    """Load ``sae.safetensors`` with ``cfg.json``; the folder is named after the hook.

    Assumptions about the layout: each row of ``encoder.weight`` and ``W_dec`` is a feature,
    ``layers.3`` is the output of block 3, and the SAE keeps the ``k`` greatest of
    ``relu(encoder(x - b_dec))``. A transcoder encodes ``x`` itself.
    """
    where, config = f"the SAE in {folder}", sparsify_settings(folder / "cfg.json")
    tensors = read_tensors(folder / "sae.safetensors").tensors
    tensors = renamed(tensors, {"encoder.weight": "W_enc", "encoder.bias": "b_enc"})
    n_features = config.get("num_latents") or config["d_in"] * config.get("expansion_factor", 32)
    check_size(where, tensors, config["d_in"], n_features)
    transcoder = config.get("transcode", False)
    if "W_skip" in tensors and not transcoder:
        raise InputError(f"{where} has a skip connection, which its features do not include")
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash([folder / "sae.safetensors", folder / "cfg.json"]),
        model_name=short_name(_SPARSIFY_RUN.read(folder.parent / "config.json").get("model")),
        mean_l0=sparsify_l0(folder),
        site=check_hook(where, folder.name, layer, transcoder=transcoder),
        path=str(folder),
    )
    k, ignored = _k(folder), ("W_skip",)
    subtract = not transcoder
    return to_sae_params("topk", tensors, origin, subtract_b_dec=subtract, k=k, ignored=ignored)


def sparsify_settings(path: Path) -> dict[str, Any]:
    """Return the known settings in ``cfg.json``.

    Raises ``InputError`` for unknown settings and for a computation that is not supported.
    """
    config = SPARSIFY.read(path, needed=("d_in",))
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(
            f"{path} has activation {activation!r}, which keeps one feature per group and cannot "
            "be rescaled; choose an SAE with activation topk"
        )
    for option in ("signed", "embed_skip", "gram_lookup"):
        if config.get(option):
            raise InputError(f"{path} has {option}=true, which features alone do not represent")
    return config


def _k(folder: Path) -> int:
    return sparsify_settings(folder / "cfg.json").get("k", 32)


def sparsify_l0(folder: Path) -> float:
    """Return ``k``, which is the mean L0."""
    return float(_k(folder))

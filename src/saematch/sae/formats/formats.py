"""SAEs as Gemma Scope and sparsify have them on disk.

Each reader says what it takes for granted of the layout, and checks shapes against the settings
where these lie beside the weights.
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
    short_name,
    told,
)
from saematch.sae.formats.settings import Fields, refuse_contradiction
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import check_hook, warn_unstated

GEMMA_SCOPE = Fields(
    {"architecture": str, "type": str, "model_name": str, "width": int, "affine_connection": bool,
     "hf_hook_point_in": str, "hf_hook_point_out": str},
    "l0",
)  # fmt: skip
"""``config.json`` of Gemma Scope 2."""
SPARSIFY = Fields(
    {"d_in": int, "num_latents": int, "expansion_factor": int, "k": int, "activation": str,
     "transcode": bool, "signed": bool, "embed_skip": bool, "gram_lookup": bool},
    "normalize_decoder multi_topk skip_connection lookup_max_order gram_table_hash",
)  # fmt: skip
"""``cfg.json`` of sparsify. Its decoder is normalised in training alone; a skip connection shows in
the tensors; tables of n-grams count only with ``gram_lookup``."""
_SPARSIFY_RUN = Fields({"model": str}, closed=False)

_PLACES = {
    "hook_embed": r"embedding",
    "attn.hook_z": r".*-att|attn_out(_all)?",
    "hook_mlp_out": r".*-mlp|mlp_out(_all)?",
    "hook_mlp_in": r".*-transcoders|transcoder(_all)?|clt(_all)?",
}
"""What the SAEs below a folder of this name read, in both editions; else the residual stream."""


def load_gemma_scope(folder: Path, layer: int, release: str) -> SaeParams:
    """Load ``params.npz``, or ``params.safetensors`` with ``config.json`` (Gemma Scope 2).

    The site is read from ``config.json``, else from the folders above: ``gemma-scope-2b-pt-mlp``
    of the first edition, ``mlp_out`` of the second.
    """
    path = next(p for p in (folder / "params.npz", folder / "params.safetensors") if p.exists())
    where, config = f"the SAE in {folder}", gemma_scope_settings(folder / "config.json")
    held = read_tensors(path)
    refuse_contradiction(path, held.beside, {"architecture": "jump_relu", **config})
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in held.tensors.items()}
    check_size(where, tensors, None, config.get("width"))
    supposed = _hook_in_path(folder, layer)
    hook = config.get("hf_hook_point_in", supposed)
    transcoder = (
        config.get("hf_hook_point_out") not in (None, hook)
        or config.get("type") == "transcoder"
        or config.get("affine_connection", False)
        or "affine_skip_connection" in tensors
        or supposed.endswith("hook_mlp_in")
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
    beside = ("affine_skip_connection",)
    return to_sae_params("jumprelu", tensors, origin, subtract_b_dec=False, beside=beside)


def gemma_scope_settings(path: Path) -> dict[str, Any]:
    """Return the understood settings in ``config.json``; empty without the file.

    Raises ``InputError`` if they ask for another computation or are not understood.
    """
    config = GEMMA_SCOPE.read(path)
    for field, legal in (("architecture", ("jump_relu",)), ("type", ("sae", "transcoder"))):
        if config.get(field, legal[0]) not in legal:
            raise InputError(
                f"{path}: {field}={config[field]!r}, but saematch takes {' and '.join(legal)} alone"
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
    number = next((found[1] for found in numbers if found), layer)
    return place if place == "hook_embed" else f"blocks.{number}.{place}"


def gemma_scope_l0(folder: Path) -> float:
    """Return the mean L0 in the folder's name, ``InputError`` if there is none."""
    return told(folder, _l0_in_name(folder))


def _l0_in_name(folder: Path) -> float | None:
    found = re.search(r"average_l0_(\d+)", folder.name)
    return float(found[1]) if found else None


def load_sparsify(folder: Path, layer: int, release: str) -> SaeParams:
    """Load ``sae.safetensors`` with ``cfg.json``; the folder is named after the hook.

    Taken for granted: ``encoder.weight`` and ``W_dec`` hold a feature a row, ``layers.3`` is the
    output of block 3, and of ``relu(encoder(x - b_dec))`` the ``k`` greatest stay; a transcoder
    encodes ``x`` itself.
    """
    where, config = f"the SAE in {folder}", sparsify_settings(folder / "cfg.json")
    tensors = read_tensors(folder / "sae.safetensors").tensors
    tensors = renamed(tensors, {"encoder.weight": "W_enc", "encoder.bias": "b_enc"})
    n_features = config.get("num_latents") or config["d_in"] * config.get("expansion_factor", 32)
    check_size(where, tensors, config["d_in"], n_features)
    transcoder = config.get("transcode", False)
    if "W_skip" in tensors and not transcoder:
        raise InputError(f"{where} has a skip connection, which features alone do not stand for")
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
    k, beside = _k(folder), ("W_skip",)
    return to_sae_params("topk", tensors, origin, subtract_b_dec=not transcoder, k=k, beside=beside)


def sparsify_settings(path: Path) -> dict[str, Any]:
    """Return the understood settings in ``cfg.json``.

    Raises ``InputError`` if they ask for another computation or are not understood.
    """
    config = SPARSIFY.read(path, needed=("d_in",))
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(
            f"{path} has activation {activation!r}, one active feature of each group, which no "
            "other gauge keeps; choose one with activation topk"
        )
    for option in ("signed", "embed_skip", "gram_lookup"):
        if config.get(option):
            raise InputError(f"{path} has {option}=true, which features alone do not stand for")
    return config


def _k(folder: Path) -> int:
    return sparsify_settings(folder / "cfg.json").get("k", 32)


def sparsify_l0(folder: Path) -> float:
    """Return ``k``."""
    return float(_k(folder))

"""SAEs as Gemma Scope and sparsify have them on disk.

Each reader says what it takes for granted of the layout, and checks shapes against the settings
where these lie beside the weights.
"""

from __future__ import annotations

import re
from pathlib import Path

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
from saematch.sae.sites import check_hook


def load_gemma_scope(folder: Path, layer: int, release: str) -> SaeParams:
    """Load ``params.npz``, or ``params.safetensors`` with ``config.json`` (Gemma Scope 2).

    The site is read from ``config.json``, else from the folders above: ``gemma-scope-2b-pt-mlp``
    of the first edition, ``mlp_out`` of the second.
    """
    path = next(p for p in (folder / "params.npz", folder / "params.safetensors") if p.exists())
    where, config = f"the SAE in {folder}", read_config(folder / "config.json")
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ValueError(
            f"{where} is of architecture {config['architecture']!r}; Gemma Scope has jump_relu"
        )
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in read_tensors(path).items()}
    parts = "/".join(folder.absolute().parts[-5:])
    if "embedding" in parts:
        raise ValueError(f"{where} reads the embedding, before block 0, for which no layer stands")
    hook, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    named = re.search(r"layer_(\d+)", parts)
    hook = hook or _hook_in_path(parts, int(named[1]) if named else layer)
    transcoder = (
        written not in (None, hook)
        or "affine_skip_connection" in tensors
        or re.search("transcoder|clt", parts) is not None
    )
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash(present(path, folder / "config.json")),
        model_name=short_name(config.get("model_name")),
        mean_l0=_l0_in_name(folder),
        site=check_hook(where, hook, layer, transcoder=transcoder),
    )
    return to_sae_params("jumprelu", tensors, origin, subtract_b_dec=False)


def _hook_in_path(path: str, layer: int) -> str:
    if re.search(r"-att\b|attn_out", path):
        return f"blocks.{layer}.attn.hook_z"
    mlp = re.search(r"-mlp\b|mlp_out", path)
    return f"blocks.{layer}.{'hook_mlp_out' if mlp else 'hook_resid_post'}"


def gemma_scope_l0(folder: Path) -> float:
    """Return the mean L0 in the folder's name, ``ValueError`` if there is none."""
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
    where, config = f"the SAE in {folder}", read_config(folder / "cfg.json", needed=("d_in",))
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise ValueError(
            f"{where} has activation {activation!r}, one active feature of each group, which no "
            "other gauge keeps; choose one with activation topk"
        )
    for option in ("signed", "embed_skip", "gram_lookup"):
        if config.get(option):
            raise ValueError(f"{where} has {option}=true, which features alone do not stand for")
    tensors = read_tensors(folder / "sae.safetensors")
    tensors = renamed(tensors, {"encoder.weight": "W_enc", "encoder.bias": "b_enc"})
    n_features = config.get("num_latents") or config["d_in"] * config.get("expansion_factor", 32)
    check_size(where, tensors, config["d_in"], n_features)
    transcoder = bool(config.get("transcode")) or "W_skip" in tensors
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=folder.name,
        revision=content_hash([folder / "sae.safetensors", folder / "cfg.json"]),
        model_name=short_name(read_config(folder.parent / "config.json").get("model")),
        mean_l0=sparsify_l0(folder),
        site=check_hook(where, folder.name, layer, transcoder=transcoder),
    )
    subtract = not config.get("transcode")
    return to_sae_params("topk", tensors, origin, subtract_b_dec=subtract, k=_k(folder))


def _k(folder: Path) -> int:
    return int(read_config(folder / "cfg.json").get("k", 32))


def sparsify_l0(folder: Path) -> float:
    """Return ``k``."""
    return float(_k(folder))

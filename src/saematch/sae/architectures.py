"""Convert the tensors of any supported architecture to ``SaeParams``; refuse the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from saematch.core.errors import InputError
from saematch.sae.params import SaeOrigin, SaeParams

_ALWAYS = ("W_enc", "W_dec", "b_dec")
NEEDED = {
    "jumprelu": (*_ALWAYS, "b_enc", "threshold"),
    "standard": (*_ALWAYS, "b_enc"),
    "topk": (*_ALWAYS, "b_enc"),
    "gated": (*_ALWAYS, "b_gate", "b_mag", "r_mag"),
}
"""Tensors of each architecture, with SAELens' names and orientation."""
STATISTICS = frozenset({"sparsity", "log_sparsity", "feature_sparsity"})
"""Tensors of any format that describe an SAE without changing what it computes."""


def to_sae_params(
    architecture: str,
    tensors: Mapping[str, Tensor],
    origin: SaeOrigin,
    *,
    subtract_b_dec: bool,
    k: int | None = None,
    ignored: Collection[str] = (),
) -> SaeParams:
    """Return the SAE, in float32.

    With ``subtract_b_dec`` the SAE encodes ``x - b_dec``. ``ignored`` names further tensors that
    do not change what the SAE computes. Raises ``InputError`` for tensors that are missing,
    unknown or not floating-point, for shapes that do not match, and for a crosscoder.
    """
    where = f"SAE {origin.where}"
    missing = [name for name in NEEDED[architecture] if name not in tensors]
    if missing:
        raise InputError(
            f"{where} is of architecture {architecture} but lacks {', '.join(missing)}; it has "
            f"{', '.join(sorted(tensors))}"
        )
    unknown = sorted(set(tensors) - set(NEEDED[architecture]) - set(ignored) - STATISTICS)
    if unknown:
        raise InputError(
            f"{where}: saematch does not know the tensor {', '.join(unknown)}, which may change "
            "what the SAE computes; if it does not, remove it from the file"
        )
    for name in NEEDED[architecture]:
        if not tensors[name].is_floating_point():
            raise InputError(
                f"{where}: {name} has dtype {str(tensors[name].dtype).removeprefix('torch.')}, but "
                "weights are floating-point numbers; save the SAE in float32"
            )
    parts = {name: tensors[name].detach().float() for name in NEEDED[architecture]}
    _check_shapes(where, parts)
    if architecture == "gated":
        parts = _as_jumprelu(parts)
    elif architecture == "jumprelu":
        parts["threshold"] = parts["threshold"].expand(len(parts["b_enc"])).clone()
    b_enc = parts["b_enc"]
    return SaeParams(
        W_enc=parts["W_enc"].contiguous(),
        b_enc=b_enc - parts["b_dec"] @ parts["W_enc"] if subtract_b_dec else b_enc,
        W_dec=parts["W_dec"].contiguous(),
        b_dec=parts["b_dec"],
        threshold=parts.get("threshold"),
        activation={"gated": "jumprelu", "standard": "relu"}.get(architecture, architecture),
        origin=origin,
        k=k,
    )


def _as_jumprelu(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the JumpReLU SAE that computes the same as a gated SAE.

    With ``g = x W_enc`` the magnitude is ``m = g e^r + b_mag``. The gate is open where
    ``g + b_gate > 0``, that is, where ``m > b_mag - b_gate e^r``.
    """
    gain = parts["r_mag"].exp()
    return {
        "W_enc": parts["W_enc"] * gain,
        "b_enc": parts["b_mag"],
        "W_dec": parts["W_dec"],
        "b_dec": parts["b_dec"],
        "threshold": parts["b_mag"] - parts["b_gate"] * gain,
    }


def _check_shapes(where: str, parts: Mapping[str, Tensor]) -> None:
    if 3 in (parts["W_enc"].ndim, parts["W_dec"].ndim):
        raise InputError(
            f"{where} is a crosscoder: W_enc has shape {tuple(parts['W_enc'].shape)} and W_dec "
            f"{tuple(parts['W_dec'].shape)}, so each of its features already spans several layers "
            "and there is nothing to match; choose an SAE of one layer"
        )
    shape = tuple(parts["W_enc"].shape)
    if len(shape) != 2:
        raise InputError(f"{where}: W_enc has shape {shape}, but must be a matrix")
    d_model, n_features = shape
    written = tuple(parts["W_dec"].shape)
    if len(written) == 2 and written[0] == n_features and written[1] != d_model:
        raise InputError(
            f"{where} reads {d_model} numbers and writes {written[1]}, so its encoder "
            "and decoder vectors have different widths; choose an SAE that reads and writes the "
            "same width"
        )
    expected = {"W_enc": shape, "W_dec": (n_features, d_model), "b_dec": (d_model,)}
    for name, tensor in parts.items():
        legal = expected.get(name, (n_features,))
        alone = name == "threshold" and tensor.numel() == 1
        if tuple(tensor.shape) != legal and not alone:
            raise InputError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, but with W_enc {shape} it "
                f"must have {legal}; the file is damaged or in another format"
            )


def unit_decoder(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SAELens tensors with decoder vectors of norm 1 and activations scaled accordingly."""
    norm = torch.linalg.vector_norm(parts["W_dec"], dim=1)
    norm = torch.where(norm > 0, norm, 1.0)
    return {
        **parts,
        "W_enc": parts["W_enc"] * norm,
        "b_enc": parts["b_enc"] * norm,
        "W_dec": parts["W_dec"] / norm[:, None],
    }

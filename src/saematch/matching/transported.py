"""Transported vectors: an SAE in the basis of a later layer, to first order.

With the mean Jacobian ``J`` of the blocks between two layers, a decoder vector ``d`` becomes
``J d``, and an encoder vector ``w`` becomes ``J^-T w``, so that ``w . d`` stays. ``J`` costs
``d_model`` backward passes for each token of the mean (``matching.jacobian``).

Transported vectors are right where the blocks between rotate or rescale the hidden state in the
same way on all tokens: plain vectors then miss the true match. They differ little from plain
vectors where ``J`` is close to a multiple of the identity, as on the embedded model. They are wrong
where the Jacobian depends on the token, or where the effect of a feature is not linear.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sites import model_refusal

log = logging.getLogger(__name__)

LARGEST_CONDITION = 1e8
"""Condition number (1-norm) above which a Jacobian counts as singular."""


def transported(sae: SaeParams, J: Float64[Tensor, "d_model d_model"]) -> SaeParams:
    """Return the SAE with transported decoder and encoder vectors, to compare with a later layer.

    Biases, thresholds and scales stay, since ``J`` is linear. If ``J`` is singular, its
    pseudo-inverse replaces the inverse, and a warning is logged. Then ``w . d`` stays only for the
    part of ``d`` that ``J`` does not map to 0.
    """
    W_dec = sae.W_dec.double() @ J.T
    W_enc = _inverse(J).T @ sae.W_enc.double()
    return replace(sae, W_dec=W_dec.to(sae.W_dec.dtype), W_enc=W_enc.to(sae.W_enc.dtype))


def _inverse(J: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    inverse, info = torch.linalg.inv_ex(J)
    condition = torch.linalg.matrix_norm(J, 1) * torch.linalg.matrix_norm(inverse, 1)
    if not info and condition < LARGEST_CONDITION:  # also False for NaN
        return inverse
    log.warning(
        "matching: the mean Jacobian of the blocks between two layers is singular, so encoder "
        "vectors are transported by its pseudo-inverse"
    )
    return torch.linalg.pinv(J, rtol=1 / LARGEST_CONDITION)


def transport_refusal(source: SaeOrigin, target: SaeOrigin) -> str | None:
    """Return why no vectors can be transported from source to target; None if they can."""
    other_model = model_refusal("a transported vector", source, target)
    if other_model is not None:
        return other_model
    if source.layer >= target.layer:
        return (
            f"no block leads from layer {source.layer} to layer {target.layer}, so no vectors can "
            "be transported"
        )
    return None

"""The parameters of one sparse autoencoder, in one meaning for every release."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.errors import InputError

ACTIVATIONS = ("jumprelu", "relu", "topk")
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "rank_scale", "stand_in")


@dataclass(frozen=True)
class SaeOrigin:
    """Where an SAE came from: enough to find the same weights again."""

    layer: int
    """The block that the SAE's site belongs to, from 0."""
    release: str
    """Release, family or folder."""
    sae_id: str
    """Identifier inside the release."""
    revision: str = ""
    """Commit of the release, or a hash of the SAE's files."""
    model_name: str = ""
    """Language model that the SAE was trained on, empty if its files do not say."""
    mean_l0: float | None = None
    """Mean number of active features a token, as the release states it."""
    site: str = "resid_post"
    """What the SAE reads, and writes again, of its block: one of ``saematch.sae.sites.SITES``."""
    stand_in_name: str = ""
    """What ``SaeParams.stand_in`` is, such as ``decoder norm``; whatever determines it is named,
    for what is computed from an SAE is kept under its origin. Empty where there is none."""
    neuronpedia_id: str | None = field(default=None, compare=False, repr=False)
    """The source, ``<model>/<source>``, whose explanations on Neuronpedia are of this very SAE.

    Not what tells SAEs apart: a release may list one file twice, with and without it.
    """
    path: str = field(default="", compare=False, repr=False)
    """Folder that the SAE was loaded from, empty if it came from a release. Not what tells SAEs
    apart either."""

    @property
    def where(self) -> str:
        """What messages call the SAE: its folder, or its release and identifier."""
        return self.path or f"{self.release}/{self.sae_id}"


@dataclass(frozen=True)
class SaeParams:
    """One SAE: ``f = act(x W_enc + b_enc)``, ``x_hat = f W_dec + b_dec`` (paper, section 2).

    Orientation is SAELens': row ``i`` of ``W_dec`` and column ``i`` of ``W_enc`` are feature ``i``.
    Raises ``InputError`` at construction for shapes that do not fit together, for an SAE without
    features, for values that are not finite and for an unknown activation. Of a transcoder, which
    reads one place and writes another, ``x`` is what it reads and ``x_hat`` what it writes; a skip
    connection past its features is not part of it.
    """

    W_enc: Float[Tensor, "d_model n_features"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " n_features"] | None
    """JumpReLU's threshold of each feature; None for an activation that has none."""
    activation: str
    """``jumprelu``, ``relu``, or ``topk``: of each token the ``k`` greatest stay."""
    origin: SaeOrigin
    k: int | None = None
    """TopK's number of features that stay active; None for the others."""
    rank_scale: Float[Tensor, " n_features"] | None = None
    """TopK: what activations are multiplied by when the greatest are chosen; None is 1. A change
    of gauge keeps the choice by it."""
    stand_in: Float[Tensor, " n_features"] | None = None
    """The scale that folding by thresholds takes where thresholds are missing or not all positive;
    None where nobody measured one. ``origin.stand_in_name`` says what it is."""

    def __post_init__(self) -> None:
        where = f"SAE {self.origin.where}"
        d_model, n_features = self.W_enc.shape
        if not d_model or not n_features:
            raise InputError(
                f"{where} has {n_features} features of {d_model} numbers, so there is nothing to "
                "match; choose another SAE"
            )
        expected: dict[str, tuple[int, ...]] = {
            "W_enc": (d_model, n_features),
            "W_dec": (n_features, d_model),
            "b_dec": (d_model,),
        }
        for name in TENSORS:
            tensor, shape = getattr(self, name), expected.get(name, (n_features,))
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise InputError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, but W_enc "
                    f"{tuple(self.W_enc.shape)} asks for {shape}"
                )
            if not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise InputError(
                    f"{where}: {name} holds {bad} values of {tensor.numel()} that are NaN or "
                    "infinite; the file is damaged or the training diverged, so fetch or train "
                    "the SAE again"
                )
            if name in ("rank_scale", "stand_in") and not (tensor > 0).all():
                raise InputError(f"{where}: {name} must be positive everywhere")
        self._check_activation(where)

    def _check_activation(self, where: str) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"{where}: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}"
            )
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise InputError(f"{where}: a JumpReLU SAE has thresholds, and no other has them")
        topk = self.activation == "topk"
        if topk != (self.k is not None) or (self.rank_scale is not None and not topk):
            raise InputError(
                f"{where}: a TopK SAE has k and may have rank_scale, and no other has them"
            )
        if self.k is not None and not 1 <= self.k <= self.n_features:
            raise InputError(
                f"{where}: k={self.k}, but at least 1 and at most all {self.n_features} features "
                "can stay active"
            )
        if (self.stand_in is not None) != bool(self.origin.stand_in_name):
            raise InputError(f"{where}: stand_in and origin.stand_in_name go together")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features ``F``."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_features"]:
        """Return dense feature activations; a pre-activation that equals its threshold is off.

        TopK keeps the ``k`` greatest of ``relu(pre) * rank_scale``, of equal ones those that
        ``torch.topk`` takes; fewer stay where fewer are positive.
        """
        pre = x @ self.W_enc + self.b_enc
        if self.k is not None:
            positive = pre.relu_()
            rank = positive if self.rank_scale is None else positive * self.rank_scale
            chosen = rank.topk(self.k, dim=1, sorted=False).indices
            kept = torch.zeros_like(positive)
            return kept.scatter_(1, chosen, positive.gather(1, chosen))
        floor = 0.0 if self.threshold is None else self.threshold.clamp(min=0.0)
        return torch.where(pre > floor, pre, 0.0)

    def decode(self, features: Float[Tensor, "n n_features"]) -> Float[Tensor, "n d_model"]:
        """Return the hidden states that the activations stand for."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Encode and decode."""
        return self.decode(self.encode(x))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SaeParams:
        """Return the same SAE on another device, and in another dtype if one is given."""
        tensors = {n: getattr(self, n) for n in TENSORS}
        moved: dict[str, Any] = {
            n: None if t is None else t.to(device, dtype) for n, t in tensors.items()
        }
        return replace(self, **moved)

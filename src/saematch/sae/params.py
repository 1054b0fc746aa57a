"""The parameters of one sparse autoencoder, in one meaning for every release."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVATIONS = ("jumprelu", "relu")


@dataclass(frozen=True)
class SaeOrigin:
    """Where an SAE came from: enough to find the same weights again."""

    layer: int
    """The block after which the SAE reads the residual stream (``resid_post``), from 0."""
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
    neuronpedia_id: str | None = field(default=None, compare=False, repr=False)
    """The source, ``<model>/<source>``, whose explanations on Neuronpedia are of this very SAE.

    Not what tells SAEs apart: a release may list one file twice, with and without it.
    """


@dataclass(frozen=True)
class SaeParams:
    """One SAE: ``f = act(x W_enc + b_enc)``, ``x_hat = f W_dec + b_dec`` (paper, section 2).

    Orientation is SAELens': row ``i`` of ``W_dec`` and column ``i`` of ``W_enc`` are feature ``i``.
    Raises ``ValueError`` at construction for shapes that do not fit together, for values that are
    not finite and for an unknown activation.
    """

    W_enc: Float[Tensor, "d_model n_features"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " n_features"] | None
    """JumpReLU's threshold of each feature; None for an activation that has none."""
    activation: str
    origin: SaeOrigin

    def __post_init__(self) -> None:
        where = f"SAE {self.origin.release}/{self.origin.sae_id}"
        d_model, n_features = self.W_enc.shape
        expected = {
            "b_enc": (n_features,),
            "W_dec": (n_features, d_model),
            "b_dec": (d_model,),
            "threshold": (n_features,),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, but W_enc "
                    f"{tuple(self.W_enc.shape)} asks for {shape}"
                )
        for name in ("W_enc", *expected):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise ValueError(
                    f"{where}: {name} holds {bad} values of {tensor.numel()} that are NaN or "
                    "infinite; the file is damaged or the training diverged, so fetch or train "
                    "the SAE again"
                )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"{where}: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}"
            )
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise ValueError(f"{where}: a JumpReLU SAE has thresholds, and no other has them")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features ``F``."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_features"]:
        """Return dense feature activations; a pre-activation that equals its threshold is off."""
        pre = x @ self.W_enc + self.b_enc
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
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        tensors = {n: getattr(self, n) for n in names}
        moved = {n: None if t is None else t.to(device, dtype) for n, t in tensors.items()}
        return replace(self, **moved)

"""The parameters of one sparse autoencoder, with the same meaning for every release."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.devices import usable_device
from saematch.core.errors import InputError

ACTIVATIONS = ("jumprelu", "relu", "topk")
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "rank_scale", "stand_in")


@dataclass(frozen=True)
class SaeOrigin:
    """Source of an SAE, precise enough to find the same weights again."""

    layer: int
    """Number of the block that the SAE's site belongs to, from 0."""
    release: str
    """Release, family or folder."""
    sae_id: str
    """Identifier inside the release."""
    revision: str = ""
    """Commit of the release, or a hash of the SAE's files."""
    model_name: str = ""
    """Language model that the SAE was trained on; empty if its files do not name it."""
    mean_l0: float | None = None
    """Mean number of active features per token, as stated by the release."""
    site: str = "resid_post"
    """Place that the SAE reads and reconstructs: one of ``saematch.sae.sites.SITES``."""
    stand_in_name: str = ""
    """Name of ``SaeParams.stand_in``, such as ``decoder norm``; empty if there is none. It includes
    everything that determines the stand-in, since results are kept under the SAE's origin."""
    neuronpedia_id: str | None = field(default=None, compare=False, repr=False)
    """Neuronpedia source that explains this SAE, as ``<model>/<source>``.

    Equality ignores it, since a release may list one file twice, with and without it.
    """
    path: str = field(default="", compare=False, repr=False)
    """Folder that the SAE was loaded from; empty if it came from a release. Equality ignores
    it."""

    @property
    def where(self) -> str:
        """Name of the SAE in messages: its folder, or its release and identifier."""
        return self.path or f"{self.release}/{self.sae_id}"


@dataclass(frozen=True, repr=False)
class SaeParams:
    """One SAE: ``f = act(x W_enc + b_enc)``, ``x_hat = f W_dec + b_dec`` (paper, section 2).

    The orientation is SAELens': feature ``i`` is row ``i`` of ``W_dec`` and column ``i`` of
    ``W_enc``. A transcoder reads ``x`` at one place and writes ``x_hat`` at another; a skip
    connection past its features is not included. Construction raises ``InputError`` for shapes
    that do not match, for an SAE without features, for values that are not finite, and for an
    unknown activation.
    """

    W_enc: Float[Tensor, "d_model n_features"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " n_features"] | None
    """JumpReLU threshold of each feature; None for other activations."""
    activation: str
    """``jumprelu``, ``relu``, or ``topk``, which keeps a token's ``k`` greatest activations."""
    origin: SaeOrigin
    k: int | None = None
    """Number of features that TopK keeps active; None for other activations."""
    rank_scale: Float[Tensor, " n_features"] | None = None
    """Factor on the activations by which TopK ranks them; None means 1. With it, a change of gauge
    keeps the same features active."""
    stand_in: Float[Tensor, " n_features"] | None = None
    """Scale for folding by thresholds if thresholds are missing or not all positive; None if
    there is no such scale. ``origin.stand_in_name`` is its name."""

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
                    f"{tuple(self.W_enc.shape)} requires {shape}"
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

    def __repr__(self) -> str:
        activation = self.activation if self.k is None else f"{self.activation} with k={self.k}"
        stand_in = self.origin.stand_in_name and f", stand-in {self.origin.stand_in_name}"
        return (
            f"SaeParams(layer {self.origin.layer} of {self.origin.release}: {self.n_features} "
            f"features, d_model {self.d_model}, {activation}{stand_in})"
        )

    def _check_activation(self, where: str) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"{where}: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}"
            )
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise InputError(f"{where}: JumpReLU SAEs, and only they, have thresholds")
        topk = self.activation == "topk"
        if topk != (self.k is not None) or (self.rank_scale is not None and not topk):
            raise InputError(f"{where}: TopK SAEs, and only they, have k and may have rank_scale")
        if self.k is not None and not 1 <= self.k <= self.n_features:
            raise InputError(
                f"{where}: k={self.k} must be at least 1 and at most the number of features, "
                f"{self.n_features}"
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
        """Return dense feature activations; a pre-activation equal to its threshold is inactive.

        TopK keeps the ``k`` greatest of ``relu(pre) * rank_scale``, or fewer if fewer are
        positive. ``torch.topk`` breaks ties.
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
        """Return the hidden states that the SAE reconstructs from the activations."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Encode and decode."""
        return self.decode(self.encode(x))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SaeParams:
        """Return the SAE on another device, converted to ``dtype`` if given.

        Raises ``InputError`` for the name of a device that this machine lacks.
        """
        if isinstance(device, str):
            device = usable_device(device)
        tensors = {n: getattr(self, n) for n in TENSORS}
        moved: dict[str, Any] = {
            n: None if t is None else t.to(device, dtype) for n, t in tensors.items()
        }
        return replace(self, **moved)


def check_sae(value: object, role: str) -> None:
    """Raise ``InputError`` that begins with ``role`` for a value that is not a loaded SAE."""
    if not isinstance(value, SaeParams):
        raise InputError(
            f"{role} is of class {type(value).__name__}, not an SAE (SaeParams): load one, as in "
            "ZooSaes('chain').load(3)"
        )

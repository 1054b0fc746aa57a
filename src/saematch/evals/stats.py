"""What an evaluation sums up, batch by batch; memory does not grow with the number of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric


@dataclass(frozen=True)
class Shapes:
    """The sizes of an evaluation's tables of sums."""

    layers: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    n_arms: int
    n_cells: int
    """Changed models of each layer pair."""
    d_model: int
    n_features: tuple[int, ...]
    """Width of each layer's SAE."""


class Totals(Metric):
    """Sums in float64 and counts in int64, reduced by addition over processes."""

    full_state_update = False

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        n_pairs, n_layers = len(shapes.pairs), len(shapes.layers)
        self._add("n_tokens", torch.int64)
        self._add("n_targets", torch.int64)
        self._add("loss_original", torch.float64)
        self._add("loss", torch.float64, n_pairs, shapes.n_cells)
        self._add("x_sum", torch.float64, n_layers, shapes.d_model)
        self._add("x_square", torch.float64, n_layers)
        self._add("error_sum", torch.float64, n_pairs, shapes.n_cells, shapes.d_model)
        self._add("error_square", torch.float64, n_pairs, shapes.n_cells)
        for place, width in enumerate(shapes.n_features):
            self._add(f"fired_{place}", torch.int64, width)
        for place, (earlier, _) in enumerate(shapes.pairs):
            width = shapes.n_features[shapes.layers.index(earlier)]
            self._add(f"both_{place}", torch.int64, shapes.n_arms, width)

    def _add(self, name: str, dtype: torch.dtype, *size: int) -> None:
        zeros = torch.zeros(size, dtype=dtype)
        self.add_state(name, zeros, dist_reduce_fx="sum", persistent=True)

    def update_original(
        self, hidden: list[Float[Tensor, "n_tokens d_model"]], losses: Float[Tensor, " n_targets"]
    ) -> None:
        """Count the unchanged model's hidden states (one tensor a layer) and losses."""
        self.n_tokens += len(hidden[0])
        self.n_targets += len(losses)
        self.loss_original += losses.double().sum()
        for place, x in enumerate(hidden):
            self.x_sum[place] += x.double().sum(dim=0)
            self.x_square[place] += x.double().square().sum()

    def update_cell(
        self,
        pair: int,
        cell: int,
        error: Float[Tensor, "n_tokens d_model"],
        losses: Float[Tensor, " n_targets"],
    ) -> None:
        """Count one changed model: its error at the replaced layer and its losses."""
        self.error_sum[pair, cell] += error.double().sum(dim=0)
        self.error_square[pair, cell] += error.double().square().sum()
        self.loss[pair, cell] += losses.double().sum()

    def update_features(self, place: int, active: Bool[Tensor, "n_tokens n_features"]) -> None:
        """Count how often each feature of a layer was active."""
        getattr(self, f"fired_{place}").add_(active.sum(dim=0))

    def update_pair(self, pair: int, arm: int, both: Tensor) -> None:
        """Count how often each earlier feature was active together with its partner."""
        getattr(self, f"both_{pair}")[arm] += both

    def update(self, *_: Any) -> None:
        """Not used: each kind of sum has an update of its own."""
        raise TypeError("Totals has one update a kind of sum; call those")

    def compute(self) -> None:
        """Not used: tables are computed from the sums of several data sets."""


def explained_variance(
    error_sum: Float[Tensor, " d_model"],
    error_square: Float[Tensor, ""],
    x_sum: Float[Tensor, " d_model"],
    x_square: Float[Tensor, ""],
    n: int,
) -> float:
    """Return ``1 - sum Var(x_hat - x) / sum Var(x)``, variances over ``n`` tokens.

    Takes sums over tokens of the vectors and of their squared norms. 1 is perfect, 0 is as good as
    the mean, negative is worse.
    """
    unexplained = error_square / n - (error_sum / n).square().sum()
    total = x_square / n - (x_sum / n).square().sum()
    return (1 - unexplained / total).item()


@dataclass(frozen=True)
class CoActivation:
    """How often matched features are active on the same token."""

    matching_score: float
    """Over all (token, feature active at the earlier layer): share whose partner is active at the
    later one (micro average)."""
    matching_score_macro: float
    """Mean of the same share over the earlier features that fired at all."""
    jaccard: float
    """Mean over earlier features that fired of both / either."""
    n_live: int
    """Earlier features that fired, what the means are over."""
    n_dead: int


def co_activation(both: Tensor, fired_from: Tensor, fired_partner: Tensor) -> CoActivation:
    """Score a match from counts by earlier feature.

    ``both``: tokens with the feature and its partner active; ``fired_from``: with the feature;
    ``fired_partner``: with the partner, 0 where there is none.
    """
    live = fired_from > 0
    hits, fired = both[live].double(), fired_from[live].double()
    either = fired + fired_partner[live].double() - hits
    n_live = int(live.sum())
    if not n_live:
        return CoActivation(0.0, 0.0, 0.0, 0, len(live))
    return CoActivation(
        (hits.sum() / fired.sum()).item(),
        (hits / fired).mean().item(),
        (hits / either).mean().item(),
        n_live,
        len(live) - n_live,
    )

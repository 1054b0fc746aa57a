"""Metrics that are computed from weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from saematch.core.match import Match
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeParams

PARTS = ("W_enc", "b_enc", "W_dec")

Sides = tuple[Tensor, Tensor]
"""Tensor of the source and tensor of the target."""

BLOCK = 64
"""Number of rows in a block; rows of 2,304 float32 numbers fit into a core's cache."""


@dataclass(frozen=True)
class FoldedPair:
    """Two SAEs, folded by their thresholds (eq. 4), with one feature in each row.

    Every part is folded once, when it is first used. All parts together need as much memory as the
    two SAEs. Raises ``InputError`` at first use for an SAE that cannot be folded by its thresholds.
    """

    source: SaeParams
    target: SaeParams

    @property
    def is_comparable(self) -> bool:
        """Whether both SAEs have the same ``d_model``, so that vectors can be subtracted."""
        return self.source.d_model == self.target.d_model

    @cached_property
    def scales(self) -> Sides:
        """Scale of each feature, ``[n_features]``."""
        return fold_scale(self.source, "threshold"), fold_scale(self.target, "threshold")

    @cached_property
    def encoders(self) -> Sides:
        """Folded encoder vectors, ``[n_features, d_model]``."""
        # A copy is needed: .T.contiguous() may return the SAE's own memory, and div_ writes to it.
        return self._folded_parts(
            lambda sae, scale: sae.W_enc.T.clone(memory_format=torch.contiguous_format).div_(
                scale[:, None]
            )
        )

    @cached_property
    def biases(self) -> Sides:
        """Folded encoder biases, ``[n_features]``."""
        return self._folded_parts(lambda sae, scale: sae.b_enc / scale)

    @cached_property
    def decoders(self) -> Sides:
        """Folded decoder vectors, ``[n_features, d_model]``."""
        return self._folded_parts(lambda sae, scale: sae.W_dec * scale[:, None])

    @cached_property
    def decoder_norms(self) -> Sides:
        """Norms of the folded decoder vectors, ``[n_features]``, float64."""
        source, target = (_squared_lengths(W.split(BLOCK)).sqrt() for W in self.decoders)
        return source, target

    def _folded_parts(self, part: Callable[[SaeParams, Tensor], Tensor]) -> Sides:
        return part(self.source, self.scales[0]), part(self.target, self.scales[1])


def squared_errors(pair: FoldedPair, match: Match) -> dict[str, Float[Tensor, " n_entries"]]:
    """Return, by part, the squared error of each entry's two features, averaged over coordinates.

    The errors do not depend on the entries' weights. They are NaN if the SAEs have different
    ``d_model``.
    """
    if not pair.is_comparable:
        return dict.fromkeys(PARTS, _no_errors(match))
    source, target = pair.biases
    return {
        "W_enc": _entry_errors(pair.encoders, match),
        "b_enc": (source[match.rows] - target[match.columns]).double().square(),
        "W_dec": _entry_errors(pair.decoders, match),
    }


def mse(pair: FoldedPair, match: Match) -> dict[str, float | None]:
    """Return the paper's MSE of each part (figure 3), on folded parameters.

    The mean over coordinates and entries; an entry counts by its absolute weight. None if no
    feature is matched or the SAEs have different ``d_model``.
    """
    if not pair.is_comparable:
        return dict.fromkeys(PARTS)
    errors = squared_errors(pair, match)
    return {part: _weighted_mean(errors[part], match) for part in PARTS}


def feature_mse(pair: FoldedPair, match: Match) -> Float[Tensor, " n_entries"]:
    """Return each entry's squared error of folded decoder vectors, averaged over coordinates.

    NaN if the SAEs have different ``d_model``.
    """
    return _entry_errors(pair.decoders, match) if pair.is_comparable else _no_errors(match)


def row_errors(pair: FoldedPair, match: Match) -> Float[Tensor, " n_matched"]:
    """Return the squared error of each source feature that has an entry, in order.

    ``mean((d_i - sum_j w_ij e_j)^2)`` over coordinates, where ``d`` and ``e`` are the folded
    decoder vectors of source and target.
    """
    W_source, W_target = pair.decoders
    features, counts = match.rows.unique_consecutive(return_counts=True)
    weights = match.weights.to(W_target)
    ends = counts.cumsum(0)

    def difference(block: Int64[Tensor, " rows"]) -> Tensor:
        starts = ends[block] - counts[block]
        entries = slice(int(starts[0]), int(ends[block[-1]]))
        mixed = embedding_bag(
            match.columns[entries],
            W_target,
            starts - starts[0],
            mode="sum",
            per_sample_weights=weights[entries],
        )
        return W_source[features[block]] - mixed

    blocks = torch.arange(len(features)).split(BLOCK) if len(features) else ()
    return _squared_lengths(map(difference, blocks)) / W_source.shape[1]


def of_least_error(match: Match, errors: Float[Tensor, " n_matched"], quantile: float) -> Match:
    """Return the match of the ``quantile`` share of rows with the least error, with all entries.

    ``errors`` has one value for each source feature that has an entry (app. B of the paper). Among
    equal errors the first features are chosen; 1 keeps all rows and 0 keeps none.
    """
    order = errors.argsort(stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: round(quantile * len(order))]] = True
    return match.keep(chosen[match.rows.unique_consecutive(return_inverse=True)[1]])


def decoder_norm_change(pair: FoldedPair, match: Match) -> dict[str, float | None]:
    """Return the change of norm from a folded decoder vector to its partner (figure 1).

    The mean and the quartiles over entries; an entry counts by its absolute weight. With weights of
    1 the mean is the same for every permutation; the quartiles are not. None if no feature is
    matched.
    """
    before, after = pair.decoder_norms
    change = after[match.columns] - before[match.rows]
    quartiles = (_weighted_quantile(change, match, share) for share in (0.25, 0.75))
    names = ("decoder_norm_change", "decoder_norm_change_q25", "decoder_norm_change_q75")
    return dict(zip(names, (_weighted_mean(change, match), *quartiles), strict=True))


def _no_errors(match: Match) -> Float[Tensor, " n_entries"]:
    return torch.full((len(match.rows),), torch.nan, dtype=torch.float64)


def _entry_errors(vectors: Sides, match: Match) -> Float[Tensor, " n_entries"]:
    """Return the squared difference of each entry's two vectors, averaged over coordinates."""
    source, target = (side.numpy() for side in vectors)
    rows, columns = match.rows.numpy(), match.columns.numpy()
    starts = range(0, len(rows), BLOCK)
    blocks = (slice(start, start + BLOCK) for start in starts)
    differences = (torch.from_numpy(source[rows[b]] - target[columns[b]]) for b in blocks)
    return _squared_lengths(differences) / source.shape[1]


def _squared_lengths(blocks: Iterable[Tensor]) -> Float[Tensor, " n_rows"]:
    """Return the squared length of each row of all blocks ``[rows, d_model]``, in float64.

    It uses NumPy, since starting PyTorch's threads takes longer than the work on one block.
    """
    doubles = (block.numpy().astype(np.float64) for block in blocks)
    lengths = [np.vecdot(block, block) for block in doubles]
    return torch.from_numpy(np.concatenate(lengths)) if lengths else torch.zeros(0).double()


def _weighted_mean(values: Float[Tensor, " n_entries"], match: Match) -> float | None:
    mass = match.weights.abs()
    return ((values * mass).sum() / mass.sum()).item() if mass.any() else None


def _weighted_quantile(
    values: Float[Tensor, " n_entries"], match: Match, share: float
) -> float | None:
    """Return the quantile of values, weighted by the absolute weights of the entries.

    It interpolates between the sorted values, each at the middle of its interval of mass.

    With equal weights the result is the ordinary quantile. Entries of weight 0 are ignored.
    """
    mass = match.weights.abs()
    if not mass.any():
        return None
    values, mass = values[mass > 0], mass[mass > 0]
    order = values.argsort()
    middles = mass[order].cumsum(0) - mass[order] / 2
    position = middles[0] + share * (middles[-1] - middles[0])
    return float(np.interp(position.item(), middles.numpy(), values[order].numpy()))

"""Decode known activations through the matches of planted SAEs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from saematch.core.pairs import Place
from saematch.core.results import Row
from saematch.evaluate.metrics import explained_variance
from saematch.matching.arm import DECODINGS, Arm
from saematch.matching.matches import MatchSet
from saematch.matching.transport import carry
from saematch.sae.activations import SparseFeatures, decode
from saematch.sae.folding import fold_scale
from saematch.sae.sources.planted import PlantedSaes
from saematch.sae.sources.source import SaeSource
from saematch.sae.suites import Saes


def planted_rows(
    saes: Saes,
    sets: Mapping[str, SaeSource],
    matches: MatchSet,
    arms: Mapping[str, Arm],
) -> list[Row]:
    """Return the rows of ``planted``: recall, and what decoding explains, by arm and strategy.

    The earlier layer's true activations are carried over and decoded; the later layer's hidden
    states are its own true activations, decoded.
    """
    rows: list[Row] = []
    for place in matches.places:
        source = sets[place.saes]
        assert isinstance(source, PlantedSaes), source
        rows += _rows_of(saes, source, matches, place, arms)
    return rows


def _rows_of(
    saes: Saes, source: PlantedSaes, matches: MatchSet, place: Place, arms: Mapping[str, Arm]
) -> list[Row]:
    earlier, later = saes[place.earlier], saes[place.later]
    codes, codes_later = (_sparse(source, layer) for layer in place[1:])
    x = decode(later, codes_later).double()
    truth = source.truth(place.layer_from, place.layer_to)
    rows: list[Row] = []
    for name, arm in arms.items():
        match = matches.by_arm[name][place]
        for strategy in arm.decode:
            by = DECODINGS[strategy]
            moved = carry(codes, match, fold_scale(earlier, by), fold_scale(later, by))
            error = decode(later, moved).double() - x
            explained = explained_variance(
                torch.ones(1, 1, dtype=torch.float64),
                error.sum(dim=0, keepdim=True),
                error.square().sum()[None],
                x.sum(dim=0, keepdim=True),
                x.square().sum()[None],
                torch.tensor([len(x)]),
            )
            row: Row = {**place._asdict(), "arm": name, "strategy": strategy}
            row |= {"recall": match.agreement(truth), "explained_variance": explained.item()}
            rows.append(row | {"n_tokens": len(x)})
    return rows


def check_planted(sets: Mapping[str, SaeSource]) -> None:
    """Refuse SAEs whose true activations nobody knows."""
    if not all(isinstance(source, PlantedSaes) for source in sets.values()):
        raise ValueError("the task planted needs activations that are known: sae=planted")


def _sparse(source: PlantedSaes, layer: int) -> SparseFeatures:
    features, values = source.codes(layer)
    starts = torch.arange(len(features)) * features.shape[1]
    return SparseFeatures(starts, features.flatten(), values.flatten(), source.n_features)

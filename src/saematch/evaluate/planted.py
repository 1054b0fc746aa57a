"""Decode known activations through the matches of planted SAEs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from saematch.core.errors import InputError
from saematch.core.pairs import Pair
from saematch.core.results import Row
from saematch.evaluate.metrics import explained_variance
from saematch.matching.arm import DECODINGS, Arm
from saematch.matching.matches import MatchSet
from saematch.matching.transport import transport
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

    The source's true activations are carried over and decoded; the target's hidden
    states are its own true activations, decoded.
    """
    rows: list[Row] = []
    for pair in matches.pairs:
        made = sets[pair.source.suite]
        assert isinstance(made, PlantedSaes), made
        rows += _rows_of(saes, made, matches, pair, arms)
    return rows


def _rows_of(
    saes: Saes, made: PlantedSaes, matches: MatchSet, pair: Pair, arms: Mapping[str, Arm]
) -> list[Row]:
    source, target = saes[pair.source], saes[pair.target]
    codes, target_codes = (sparse_codes(made, key.layer) for key in pair)
    x = decode(target, target_codes).double()
    truth = made.truth(pair.source.layer, pair.target.layer)
    rows: list[Row] = []
    for name, match in matches.of(pair).items():
        for strategy in arms[name].decode:
            by = DECODINGS[strategy]
            moved = transport(codes, match, fold_scale(source, by), fold_scale(target, by))
            error = decode(target, moved).double() - x
            explained = explained_variance(
                torch.ones(1, 1, dtype=torch.float64),
                error.sum(dim=0, keepdim=True),
                error.square().sum()[None],
                x.sum(dim=0, keepdim=True),
                x.square().sum()[None],
                torch.tensor([len(x)]),
            )
            row: Row = {**pair.columns(), "arm": name, "strategy": strategy}
            row |= {"recall": match.agreement(truth), "explained_variance": explained.item()}
            rows.append(row | {"n_tokens": len(x)})
    return rows


def check_planted(sets: Mapping[str, SaeSource]) -> None:
    """Refuse SAEs whose true activations nobody knows."""
    if not all(isinstance(source, PlantedSaes) for source in sets.values()):
        raise InputError("the evaluation planted needs activations that are known: sae=planted")


def sparse_codes(source: PlantedSaes, layer: int) -> SparseFeatures:
    """Return the true activations at a layer, those of one token after those of another."""
    features, values = source.codes(layer)
    starts = torch.arange(len(features)) * features.shape[1]
    return SparseFeatures(starts, features.flatten(), values.flatten(), source.n_features)

"""Decode known activations through the matches of planted SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from saematch.core.columns import EXPLAINED_VARIANCE, Column
from saematch.core.errors import InputError
from saematch.core.pairs import Pair
from saematch.core.specs import spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.evaluation import Evaluation, PairFacts, Subject
from saematch.evaluate.match_tables import RECALL
from saematch.evaluate.metrics import explained_variance
from saematch.matching.arm import DECODINGS
from saematch.matching.transport import transport
from saematch.sae.activations import SparseFeatures, decode
from saematch.sae.folding import fold_scale
from saematch.sae.recorders import Recording
from saematch.sae.sources.planted import PlantedSaes
from saematch.sae.sources.source import SaeSource


@spec("evaluations.planted")
class Planted(Evaluation):
    """Spec of the evaluation ``planted``: recall, and explained variance of decoding."""

    columns: ClassVar[tuple[Column, ...]] = (RECALL, EXPLAINED_VARIANCE)

    def check_sources(self, sources: Mapping[str, SaeSource]) -> None:
        """Refuse SAEs whose true activations are unknown."""
        if not all(isinstance(source, PlantedSaes) for source in sources.values()):
            raise InputError("the evaluation planted needs known activations: set sae=planted")

    def refusal(self, facts: PairFacts) -> str | None:
        """Refuse pairs of two suites."""
        within = facts.pair.within_suite
        return None if within else "planted activations are known within one suite only"

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``planted``, a row for each pair, arm and strategy that transports activations.

        The true activations of the source are transported and decoded. They are compared with the
        decoded true activations of the target.
        """
        rows = [row for pair in subject.matches.pairs for row in _pair_rows(subject, pair)]
        return Tables.of({"planted": rows})


def _pair_rows(subject: Subject, pair: Pair) -> list[Row]:
    suite = subject.sources[pair.source.suite]
    assert isinstance(suite, PlantedSaes), suite
    source, target = subject.saes[pair.source], subject.saes[pair.target]
    codes, target_codes = (sparse_codes(suite, key.layer) for key in pair)
    x = decode(target, target_codes).double()
    truth = suite.truth(pair.source.layer, pair.target.layer)
    rows: list[Row] = []
    for name, match in subject.matches.of(pair).items():
        for strategy in filter(DECODINGS.__contains__, subject.arms[name].decode):
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


def sparse_codes(source: PlantedSaes, layer: int) -> SparseFeatures:
    """Return the true activations of a layer."""
    features, values = source.codes(layer)
    starts = torch.arange(len(features)) * features.shape[1]
    return SparseFeatures(starts, features.flatten(), values.flatten(), source.n_features)

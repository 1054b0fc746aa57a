"""Follow single features through the layers."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch.nn.functional import cosine_similarity

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Row
from saematch.core.specs import AtLeast1, Seed, Some, spec
from saematch.evaluate.following import BREADTH, Step, begin, follow
from saematch.evaluate.tables import Tables
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.matching.matches import MatchSet
from saematch.sae.suites import SaeFacts, Saes


@spec("paths")
class PathSpec:
    """Spec of the feature paths: from how many features of the first layer, and which."""

    n_paths: int = 20
    seed: Seed = 0
    breadth: AtLeast1 = BREADTH
    """Most features that a path holds at a layer, those of largest absolute weight."""
    features: Some[int] | None = None
    """Features of the first layer to follow; None draws ``n_paths`` at random, of those that fired
    on the texts if there was an evaluation."""

    def __post_init__(self) -> None:
        if self.n_paths < 1:
            raise InputError(f"paths.n_paths={self.n_paths}: at least one path is needed")


def path_rows(saes: Saes, matches: MatchSet, spec: PathSpec, tables: Tables | None) -> list[Row]:
    """Return the rows of ``paths``: one for each suite, arm, path, step and entry that it follows.

    Step by step is composition: a path follows each layer's match to the next (section 3.2). It
    ends early where none of its features has a partner. All arms follow the same features.
    """
    rows: list[Row] = []
    for _, group in groupby(matches.pairs, key=lambda pair: pair.suites):
        pairs = list(group)
        n_features = next(iter(matches.by_arm.values()))[pairs[0]].n_source
        first = begin(_choose(n_features, pairs[0].source, spec, tables))
        held = dict.fromkeys(matches.by_arm, first)
        found: dict[str, list[Row]] = {arm: [] for arm in matches.by_arm}
        for number, pair in enumerate(pairs):
            folded = FoldedPair(saes[pair.source], saes[pair.target])
            for arm, of_arm in matches.by_arm.items():
                steps, held[arm] = follow(held[arm], of_arm[pair], spec.breadth)
                scores = _scores(folded, of_arm[pair], pair, steps, tables)
                for step, score in zip(steps, scores, strict=True):
                    row: Row = {**pair.columns(), "arm": arm, "path": step.path, "step": number}
                    row |= {name: getattr(step, name) for name in _COLUMNS}
                    found[arm].append(row | score)
            del folded  # so that memory never holds two pairs
        rows += [row for of_arm in found.values() for row in of_arm]
    return rows


_COLUMNS = ("source_feature", "target_feature", "weight", "path_weight", "dropped_mass")
"""Fields of a step that are columns."""


def check_paths(spec: PathSpec, key: SaeKey, sae: SaeFacts) -> None:
    """Refuse features that a suite's first SAE does not have."""
    beyond = [f for f in spec.features or () if not 0 <= f < sae.n_features]
    if beyond:
        raise InputError(
            f"paths.features holds {beyond[0]}, but {key.name} has features 0 to "
            f"{sae.n_features - 1}"
        )


def _choose(n_features: int, key: SaeKey, spec: PathSpec, tables: Tables | None) -> list[int]:
    if spec.features is not None:
        return list(spec.features)
    every = torch.arange(n_features)
    alive = every if tables is None else every[tables.fired(key) > 0]
    generator = torch.Generator().manual_seed(spec.seed)
    order = torch.randperm(len(alive), generator=generator)[: spec.n_paths]
    return alive[order].tolist()


def _scores(
    folded: FoldedPair, match: Match, pair: Pair, steps: list[Step], tables: Tables | None
) -> list[Row]:
    """Return how alike the two features of each step are."""
    entries = sorted({step.entry for step in steps})
    chosen = torch.zeros(len(match.rows), dtype=torch.bool)
    chosen[entries] = True
    followed = match.keep(chosen)
    errors = feature_mse(folded, followed).tolist()
    cosine = [math.nan] * len(errors)
    if folded.is_comparable:
        source, target = folded.source.W_dec, folded.target.W_dec
        vectors = source[followed.rows], target[followed.columns]
        cosine = cosine_similarity(*vectors, dim=1).tolist()
    found: list[Row] = [
        {"mse_W_dec": error, "cosine_W_dec": alike}
        for error, alike in zip(errors, cosine, strict=True)
    ]
    if tables is not None:
        counts = tables.entries(pair, match, entries)
        found = [row | counted for row, counted in zip(found, counts, strict=True)]
    by_entry = dict(zip(entries, found, strict=True))
    return [by_entry[step.entry] for step in steps]

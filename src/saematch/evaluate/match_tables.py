"""The table of matches: how good each is by weights alone, and how often it agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Row
from saematch.evaluate.means import CERTIFICATE_METRICS
from saematch.evaluate.weights import FoldedPair, decoder_norm_change, mse
from saematch.matching.arm import Arm
from saematch.matching.matches import MatchSet
from saematch.sae.folding import is_uniform
from saematch.sae.suites import Saes


def match_rows(
    saes: Saes,
    matches: MatchSet,
    truth: Callable[[Pair], Match | None],
    exact: Mapping[str, str],
) -> list[Row]:
    """Return the rows of the table ``matches``, without the columns that need activations.

    ``exact`` names, for each arm that composes, the arm that matches at once: the share of its
    pairs that composition finds too is ``agreement``.
    """
    return [
        row for pair in matches.pairs for row in _rows_of(saes, matches, pair, truth(pair), exact)
    ]


def _rows_of(
    saes: Saes, matches: MatchSet, pair: Pair, known: Match | None, exact: Mapping[str, str]
) -> list[Row]:
    source, target = saes[pair.source], saes[pair.target]
    folded = FoldedPair(source, target)
    by_hash: dict[str, Row] = {}  # arms with equal matches share their metrics
    rows: list[Row] = []
    for arm, match in matches.of(pair).items():
        key = matches.hashes[arm][pair]
        if key not in by_hash:
            errors = {f"mse_{part}": value for part, value in mse(folded, match).items()}
            by_hash[key] = {**errors, **decoder_norm_change(folded, match)}
        proof = match.certificate
        direct = matches.by_arm[exact[arm]].get(pair) if arm in exact else None
        rows.append(
            {
                **pair.columns(),
                "arm": arm,
                **by_hash[key],
                "recall": None if known is None else match.agreement(known),
                "agreement": None if direct is None else match.agreement(direct),
                **{
                    name: None if proof is None else getattr(proof, name)
                    for name in CERTIFICATE_METRICS
                },
                "n_features": match.n_source,
                "n_matched": len(match.matched),
                "n_entries": len(match.rows),
                "dropped_mass": match.dropped,
                "uniform_threshold": is_uniform(source) and is_uniform(target),
            }
        )
    return rows


def live_recall(
    matches: MatchSet,
    truth: Callable[[Pair], Match | None],
    fired: Callable[[SaeKey], Int64[Tensor, " n_features"]],
) -> dict[tuple[Pair, str], float]:
    """Return the column ``recall_live`` by pair and arm: recall of live features.

    A feature is live if it fired on the texts; ``fired`` returns the number of tokens for each
    feature of an SAE. Pairs without a known truth or a live feature are absent.
    """
    recall = {}
    for pair in matches.pairs:
        known = truth(pair)
        live = None if known is None else known.keep(fired(pair.source)[known.rows] > 0)
        if live is not None and len(live.rows):
            recall |= {(pair, a): match.agreement(live) for a, match in matches.of(pair).items()}
    return recall


def exact_arms(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return, for each arm that composes, an arm that differs from it in nothing else."""
    return {
        name: other
        for name, arm in arms.items()
        if arm.compose
        for other, direct in arms.items()
        if replace(arm, compose=False, **_APART) == replace(direct, **_APART)
    }


_APART: dict[str, Any] = {"decode": (), "quantiles": (), "composed_entries": 1}
"""Settings of an arm that do not change the match of two layers at once."""

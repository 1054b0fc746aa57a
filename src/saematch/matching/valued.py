"""Matches with the scores of their entries and the value of both together."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.core.match import Certificate, Match
from saematch.matching.centring import VECTORS_AT_ONCE, chance_value
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors


def valued(columns: Int64[Tensor, " n_source"], factors: Factors) -> Match:
    """Return the match with its value; columns beyond the target's width mean no partner.

    The certificate has a chance value if every feature of the narrower layer has a partner.
    """
    n_target = len(factors.X_B)
    match = Match.from_columns(torch.where(columns < n_target, columns, -1), n_target)
    scores = pair_scores(factors, match)
    chance = None
    if len(match.rows) == min(match.n_source, n_target):
        chance = chance_value(factors.X_A, factors.X_B)
    certificate = Certificate(scores.sum().item(), None, chance)
    return replace(match, certificate=certificate, scores=scores)


def valued_pairs(chosen: Candidates, unmatched: float = 0.0, exact: bool = False) -> Match:
    """Return the match of the chosen candidates, at most one for a feature, with its value.

    Each feature of the smaller side without an entry adds ``unmatched`` to the value. With
    ``exact``, the value is also the bound.
    """
    n_alone = min(chosen.n_source, chosen.n_target) - len(chosen.rows)
    value = chosen.scores.sum().item() + unmatched * n_alone
    certificate = Certificate(value, value if exact else None)
    weights = torch.ones(len(chosen.rows), dtype=torch.float64)
    return Match(
        chosen.rows, chosen.columns, weights, chosen.n_source, chosen.n_target, certificate,
        scores=chosen.scores,
    )  # fmt: skip


def pair_scores(factors: Factors, match: Match) -> Float64[Tensor, " n"]:
    """Return the similarity of each entry of a match, computed in float64."""
    parts = zip(
        match.rows.split(VECTORS_AT_ONCE), match.columns.split(VECTORS_AT_ONCE), strict=True
    )
    scores = [
        torch.linalg.vecdot(factors.X_A[i].double(), factors.X_B[j].double()).cpu()
        for i, j in parts
    ]
    return torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)

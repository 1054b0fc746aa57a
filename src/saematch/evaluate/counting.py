"""Count which features are active, and which are active together with their partners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.transport import crossings
from saematch.sae.activations import SparseFeatures


class MatchedPair(NamedTuple):
    """One match at one pair; arms that found the same match share it."""

    pair: Pair
    match: str
    """The match's hash."""


def count_features(
    matched: Mapping[MatchedPair, Match],
    active: Mapping[SaeKey, SparseFeatures],
    counts: Bool[Tensor, "batch seq"],
) -> dict[str, Tensor]:
    """Count, by text, activations of features, and of features together with their partners.

    ``counts`` marks the positions that ``active`` is about. The sums are those that
    ``evaluate_batch`` names.
    """
    text = torch.nonzero(counts)[:, 0]
    n_texts = len(counts)
    sums = {}
    for key, entries in active.items():
        fired = _count(text[entries.tokens()], entries.features, n_texts, entries.n_features)
        sums[f"fired|{key.suite}|{key.layer}"] = fired
    of, dense = None, torch.empty(0)  # one layer's at a time: tokens times features are many
    for matched_pair, match in matched.items():
        target = matched_pair.pair.target
        if target != of:
            of, dense = target, active[target].dense()
        entries = active[matched_pair.pair.source]
        sums |= _count_partners(matched_pair, match, entries, dense, text, n_texts)
        if not match.one_partner:
            name = counts_name("partners", matched_pair)
            sums[name] = _count_any(match.inverse(), active[target], text, n_texts)
    return sums


def _count_partners(
    matched_pair: MatchedPair,
    match: Match,
    active: SparseFeatures,
    target: Bool[Tensor, "n_tokens n_target"],
    text: Int64[Tensor, " n_tokens"],
    n_texts: int,
) -> dict[str, Tensor]:
    """Count, by text, tokens on which a source feature and a partner are active."""
    tokens = active.tokens()
    origins, entries = crossings(match, active.features)[1:]
    hit = target[tokens[origins], match.columns.to(tokens.device)[entries]]
    hits, n_source = origins[hit], match.n_source
    if match.one_partner:
        both = _count(text[tokens[hits]], active.features[hits], n_texts, n_source)
        return {counts_name("both", matched_pair): both}
    by_entry = _count(text[tokens[hits]], entries[hit], n_texts, len(match.rows))
    hits = hits.unique_consecutive()  # an active feature with several active partners counts once
    both = _count(text[tokens[hits]], active.features[hits], n_texts, n_source)
    return {
        counts_name("both", matched_pair): both,
        counts_name("entries", matched_pair): by_entry,
    }


def _count_any(
    match: Match, active: SparseFeatures, text: Int64[Tensor, " n_tokens"], n_texts: int
) -> Int64[Tensor, "n_texts n_target"]:
    """Count, by text, tokens on which any source feature that leads to a target one is active."""
    origins, entries = crossings(match, active.features)[1:]
    reached = torch.zeros(
        active.n_tokens, match.n_target, dtype=torch.bool, device=active.features.device
    )
    reached[active.tokens()[origins], match.columns.to(entries.device)[entries]] = True
    tokens, features = torch.nonzero(reached, as_tuple=True)
    return _count(text[tokens], features, n_texts, match.n_target)


def counts_name(kind: str, matched_pair: MatchedPair) -> str:
    """Return the name of the counts of a kind: ``both``, ``entries`` or ``partners``."""
    pair, match = matched_pair
    return "|".join(map(str, (kind, *pair.source, *pair.target, match)))


def _count(
    texts: Int64[Tensor, " n"], features: Int64[Tensor, " n"], n_texts: int, n_features: int
) -> Int64[Tensor, "n_texts n_features"]:
    counts = torch.bincount(texts * n_features + features, minlength=n_texts * n_features)
    return counts.view(n_texts, n_features)

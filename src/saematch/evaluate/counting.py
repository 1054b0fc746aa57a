"""Count activations of features, and activations together with their partners."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.transport import crossings
from saematch.sae.activations import SparseFeatures
from saematch.sae.recorders import Forward, Models
from saematch.texts.batch_work import Kept


class MatchedPair(NamedTuple):
    """One match at one pair; arms that found the same match share it."""

    pair: Pair
    match: str
    """The match's hash."""


@dataclass(frozen=True)
class CountRecorder:
    """Counts, by text, activations of features, and of features together with their partners.

    For each SAE: ``fired`` (tokens on which a feature is active), and norms of the hidden states of
    its layer. For each match: ``both`` (tokens on which a feature and any of its partners are
    active). A match with several entries in a row also has ``entries`` (tokens on which both
    features of an entry are active) and ``partners`` (tokens on which any partner of a source
    feature is active). For each language model: numbers of tokens.
    """

    folder: Path
    saes: tuple[SaeKey, ...]
    """SAEs that are counted, each once."""
    matched: Mapping[MatchedPair, Match]
    models: Models = field(default_factory=Models)
    runs_model: ClassVar[bool] = False

    def needs(self) -> dict[Hashable, frozenset[SaeKey]]:
        """Return the SAEs that each item needs: an SAE itself, or both SAEs of a match."""
        needs: dict[Hashable, frozenset[SaeKey]] = {key: frozenset([key]) for key in self.saes}
        return needs | {matched: frozenset(matched.pair) for matched in self.matched}

    def only(self, items: Collection[Hashable]) -> CountRecorder:
        """Return a recorder of some SAEs and matches."""
        saes = tuple(key for key in self.saes if key in items)
        return replace(
            self, saes=saes, matched={m: match for m, match in self.matched.items() if m in items}
        )

    def facts(self) -> list[Any]:
        """Return the SAEs and the matches, by their hashes."""
        return [list(self.saes), list(self.matched)]

    def record(self, forward: Forward) -> Kept:
        """Count one batch. The first axis of each tensor is the text."""
        batch, counted = forward.batch, by_text(forward.batch.counts)
        sums = {}
        for key in self.saes:
            label = self.models.of(key)
            sums[labelled("n_tokens", label)] = batch.counts.sum(dim=1)
            sums[labelled("n_special", label)] = batch.n_special
            norms = labelled(f"x_norm|{key.layer}", label)
            if norms not in sums:
                square = forward.x(key).double().square().sum(dim=1)
                sums[norms] = counted @ square.sqrt()
        return sums | self._features(forward)

    def _features(self, forward: Forward) -> Kept:
        text, n_texts = forward.text, len(forward.batch.ids)
        sums = {}
        for key in self.saes:
            active = forward.active(key)
            counts = _count(text[active.tokens()], active.features, n_texts, active.n_features)
            sums[fired_name(key)] = counts
        dense_of, dense = None, torch.empty(0)  # large, so only one SAE at a time
        for matched_pair, match in self.matched.items():
            source, target = matched_pair.pair
            if target != dense_of:
                dense_of, dense = target, forward.active(target).dense()
            active = forward.active(source)
            sums |= _count_partners(matched_pair, match, active, dense, text, n_texts)
            if not match.one_partner:
                name = counts_name("partners", matched_pair)
                sums[name] = _count_any(match.inverse(), forward.active(target), text, n_texts)
        return sums

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the sums of both halves, one text after the other."""
        return {name: torch.cat([sums, second[name]]) for name, sums in first.items()}


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


def labelled(name: str, model: str) -> str:
    """Return the name of a sum of one language model, given by its label."""
    return f"{name}|{model}" if model else name


def by_text(positions: Bool[Tensor, "batch seq"]) -> Float64[Tensor, "batch n"]:
    """Return the matrix that adds up values at the chosen positions for each text."""
    text = torch.nonzero(positions)[:, 0]
    texts = torch.arange(len(positions), device=text.device)
    return (texts[:, None] == text).double()


def fired_name(key: SaeKey) -> str:
    """Return the name of the numbers of tokens on which each feature of an SAE is active."""
    return f"fired|{key.suite}|{key.layer}"


def counts_name(kind: str, matched_pair: MatchedPair) -> str:
    """Return the name of the counts of a kind: ``both``, ``entries`` or ``partners``."""
    pair, match = matched_pair
    return "|".join(map(str, (kind, *pair.source, *pair.target, match)))


def _count(
    texts: Int64[Tensor, " n"], features: Int64[Tensor, " n"], n_texts: int, n_features: int
) -> Int64[Tensor, "n_texts n_features"]:
    counts = torch.bincount(texts * n_features + features, minlength=n_texts * n_features)
    return counts.view(n_texts, n_features)

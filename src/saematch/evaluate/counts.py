"""Counts of features that were active on the texts of a run, alone or together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.columns import Column, share
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.tables import Row
from saematch.evaluate.counting import MatchedPair, counts_name, fired_name, labelled
from saematch.evaluate.intervals import Replicates
from saematch.evaluate.metrics import ratio
from saematch.sae.recorders import Models
from saematch.texts.sums import TextSums

MATCHING_SCORE = share(
    "matching_score", "matching score",
    "share of the activations of source features, over all (token, active feature), on which a "
    "partner is active too; a feature without a partner counts as a miss",
    interval=True, logged=("matches",),
)  # fmt: skip
JACCARD = share(
    "jaccard", "Jaccard index",
    "tokens on which a feature and a partner are active over tokens on which either is, mean over "
    "source features that were active",
    interval=True, logged=("matches",),
)  # fmt: skip


class PairCounts(NamedTuple):
    """Numbers of tokens by text and source feature."""

    both: Int64[Tensor, "n_texts n_features"]
    """Tokens on which the feature and any of its partners are active."""
    fired_source: Int64[Tensor, "n_texts n_features"]
    fired_target: Int64[Tensor, "n_texts n_features"]
    """Tokens on which any partner is active; 0 for a feature without a partner."""
    entries: Int64[Tensor, " n_texts"]
    """Tokens on which both features of an entry are active, added up over the entries."""


@dataclass(frozen=True)
class Counts:
    """Reader of the counts that ``CountRecorder`` recorded."""

    sums: Mapping[str, TextSums]
    """By text set."""
    twins: Mapping[SaeKey, SaeKey]
    """Key under which each SAE was recorded."""
    models: Models
    replicates: Replicates

    def total(self, key: SaeKey, name: str) -> Tensor:
        """Return a sum of an SAE's language model for each text of all sets."""
        return self._pooled(labelled(name, self.models.of(key)))

    def fired_by_text(self, key: SaeKey) -> Int64[Tensor, "n_texts n_features"]:
        """Return the number of tokens with each feature active, by text of all sets."""
        return self._pooled(fired_name(self.twins[key]))

    def fired(self, key: SaeKey) -> Int64[Tensor, " n_features"]:
        """Return the number of tokens with each feature active, over all text sets."""
        return self.fired_by_text(key).sum(dim=0)

    def of_pair(self, pair: Pair, match: Match) -> dict[str, PairCounts]:
        """Return the counts of a match for each text set."""
        return {name: self._of_set(sums, pair, match) for name, sums in self.sums.items()}

    def _of_set(self, sums: TextSums, pair: Pair, match: Match) -> PairCounts:
        matched_pair = self._matched(pair, match)
        source, target = (sums[fired_name(self.twins[key])] for key in pair)
        both = sums[counts_name("both", matched_pair)]
        if not match.one_partner:
            entries, partners = (
                sums[counts_name(kind, matched_pair)] for kind in ("entries", "partners")
            )
            return PairCounts(both, source, partners, entries.sum(dim=1))
        partners = torch.zeros_like(both)
        partners[:, match.rows] = target[:, match.columns]
        return PairCounts(both, source, partners, both.sum(dim=1))

    def of_entries(self, pair: Pair, match: Match, entries: Sequence[int]) -> list[Row]:
        """Return how often the two features of single entries are active together.

        For each entry: ``matching_score`` and ``jaccard`` with intervals, over all text sets.
        """
        chosen = torch.tensor(entries, dtype=torch.int64)
        sources, targets = match.rows[chosen], match.columns[chosen]
        kind, counted = ("both", sources) if match.one_partner else ("entries", chosen)
        both = self._pooled(counts_name(kind, self._matched(pair, match)))[:, counted].double()
        source = self.fired_by_text(pair.source)[:, sources].double()
        target = self.fired_by_text(pair.target)[:, targets].double()
        weights = self.replicates.pooled()
        hits, fired = weights @ both, weights @ source
        either = fired + weights @ target - hits
        score, jaccard = ratio(hits, fired), ratio(hits, either)
        return [
            {
                **self._row(MATCHING_SCORE, score[:, n], fired[:, n]),
                **self._row(JACCARD, jaccard[:, n], either[:, n]),
                "n_fired_source": int(source[:, n].sum()),
                "n_fired_target": int(target[:, n].sum()),
            }
            for n in range(len(chosen))
        ]

    def _row(self, column: Column, values: Tensor, whole: Tensor) -> Row:
        return self.replicates.row(column, values, whole)

    def _matched(self, pair: Pair, match: Match) -> MatchedPair:
        return MatchedPair(Pair(*(self.twins[key] for key in pair)), match.hash)

    def _pooled(self, name: str) -> Tensor:
        return torch.cat([sums[name] for sums in self.sums.values()])

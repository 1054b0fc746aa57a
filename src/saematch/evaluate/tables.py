"""The tables of an evaluation, from its sums by text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from saematch.core.match import Match
from saematch.core.pairs import POOLED, Pair, SaeKey
from saematch.core.tables import Row
from saematch.evaluate.contrasts import arm_contrasts, strategy_contrasts
from saematch.evaluate.counting import counts_name
from saematch.evaluate.intervals import FEW_TEXTS, Intervals, Values, Weights
from saematch.evaluate.means import SCORE_METRICS, SPLICE_METRICS, Means
from saematch.evaluate.metrics import CoActivation, co_activation, explained_variance, mean, share
from saematch.evaluate.plan import Cell
from saematch.evaluate.splice import SplicePlan, labelled
from saematch.matching.matches import MatchSet
from saematch.texts.sums import TextSums

log = logging.getLogger(__name__)

COUNTS = ("n_live", "n_dead", "n_unmatched", "n_dead_partners", "n_both_live")
"""Numbers of source features in the table ``activations``."""


class _Counts(NamedTuple):
    """Numbers of tokens by text, as ``co_activation`` takes them."""

    both: torch.Tensor
    fired_source: torch.Tensor
    fired_target: torch.Tensor
    entries: torch.Tensor


class Tables:
    """Turns the sums of a run into rows; all metrics of a run share their replicates."""

    def __init__(
        self, plan: SplicePlan, by_set: Mapping[str, TextSums], intervals: Intervals
    ) -> None:
        self.plan = plan
        self.by_set = dict(by_set)
        first = labelled("n_tokens", next(iter(plan.labels), ""))
        sizes = {name: len(sums[first]) for name, sums in by_set.items()}
        self.replicates = intervals.replicates(list(sizes.values()))
        self.weights: dict[str, Weights] = dict(zip(sizes, self.replicates.weights, strict=True))
        self.means = Means(self.replicates)
        small = [f"{name} has {n}" for name, n in sizes.items() if n < FEW_TEXTS]
        if small and intervals.n_replicates:
            log.warning(
                "intervals from fewer than %d texts are often too narrow: %s; use more texts",
                FEW_TEXTS,
                ", ".join(small),
            )

    def strategies(self, cells: Sequence[Cell]) -> dict[str, list[Row]]:
        """Return the tables ``strategies`` and ``contrasts``.

        ``strategies`` has one row for each pair, data set, arm, strategy and quantile.
        ``contrasts`` has the differences between an arm and each later arm under the same strategy,
        between the two strategies of an arm, and between an arm and each strategy without a match.
        """
        rows: list[Row] = []
        contrasts: list[Row] = []
        for pair in dict.fromkeys(cell.splice.pair for cell in cells):
            of_pair = [cell for cell in cells if cell.splice.pair == pair]
            for dataset in self.by_set:
                measured = [self._cell(cell, dataset) for cell in of_pair]
                for cell, metrics in zip(of_pair, measured, strict=True):
                    rows.append(self._strategy_row(cell, dataset, metrics))
                    what = (cell.arm, dataset, cell.splice.strategy, cell.splice.quantile)
                    for metric in SPLICE_METRICS:
                        self.means.add(pair, *what, metric, metrics[metric])
                contrasts += strategy_contrasts(of_pair, measured, dataset, self.replicates)
        return {"strategies": rows, "contrasts": contrasts}

    def _cell(self, cell: Cell, dataset: str) -> dict[str, Values]:
        sums, weights = self.by_set[dataset], self.weights[dataset]
        name, layer = cell.evaluated.name, cell.splice.pair.target.layer
        model = self.plan.model_of(cell.splice.pair.target)
        n_targets = sums[labelled("n_targets", model)]
        loss = mean(weights, sums[f"loss|{name}"], n_targets)
        variance = explained_variance(
            weights,
            sums[f"error_sum|{name}"],
            sums[f"error_square|{name}"],
            sums[labelled(f"x_sum|{layer}", model)],
            sums[labelled(f"x_square|{layer}", model)],
            sums[labelled("n_tokens", model)],
        )
        original = mean(weights, sums[labelled("loss_original", model)], n_targets)
        return {"explained_variance": variance, "delta_loss": loss - original, "loss": loss}

    def _strategy_row(self, cell: Cell, dataset: str, measured: Mapping[str, Values]) -> Row:
        sums = self.by_set[dataset]
        model = self.plan.model_of(cell.splice.pair.target)
        n_tokens, n_special, n_targets, loss = (
            sums[labelled(name, model)]
            for name in ("n_tokens", "n_special", "n_targets", "loss_original")
        )
        row: Row = {
            **cell.splice.pair.columns(),
            "arm": cell.arm,
            "dataset": dataset,
            "strategy": cell.splice.strategy,
            "quantile": cell.splice.quantile,
        }
        for metric, values in measured.items():
            row |= self.replicates.row(metric, values)
        return row | {
            "loss_original": loss.sum().item() / int(n_targets.sum()),
            "n_texts": len(n_tokens),
            "n_tokens": int(n_tokens.sum()),
            "n_special": int(n_special.sum()),
            "n_targets": int(n_targets.sum()),
        }

    def activations(self, matches: MatchSet) -> dict[str, list[Row]]:
        """Return the tables ``activations`` and ``activation_contrasts``: what fires together.

        ``activations`` has one row for each pair, arm and data set, ``activation_contrasts`` one
        for each two arms. The last data set of each is ``all`` of them together. Pairs of which
        nothing was counted have no rows.
        """
        rows: list[Row] = []
        contrasts: list[Row] = []
        for pair in filter(self.plan.counts, matches.pairs):
            by_match: dict[str, dict[str, CoActivation]] = {}
            hashes = {arm: matches.hashes[arm][pair] for arm in matches.of(pair)}
            for arm, found in hashes.items():
                if found not in by_match:  # arms may have found the same match
                    by_match[found] = self._scores(pair, matches.by_arm[arm][pair])
            by_arm = {arm: by_match[found] for arm, found in hashes.items()}
            for arm, scores in by_arm.items():
                for dataset, score in scores.items():
                    row: Row = {**pair.columns(), "arm": arm, "dataset": dataset}
                    rows.append(row | self._score_row(score))
                    for metric in SCORE_METRICS:
                        values = getattr(score, metric)
                        self.means.add(pair, arm, dataset, None, None, metric, values)
            contrasts += arm_contrasts(pair, by_arm, self.replicates)
        return {"activations": rows, "activation_contrasts": contrasts}

    def _scores(self, pair: Pair, match: Match) -> dict[str, CoActivation]:
        counts = {name: self._counts(sums, pair, match) for name, sums in self.by_set.items()}
        n_partners = torch.bincount(match.rows, minlength=match.n_source)
        scores = {
            dataset: co_activation(self.weights[dataset], *of_set, n_partners)
            for dataset, of_set in counts.items()
        }
        pooled = map(torch.cat, zip(*counts.values(), strict=True))
        scores[POOLED] = co_activation(self.replicates.pooled(), *pooled, n_partners)
        return scores

    def _counts(self, sums: TextSums, pair: Pair, match: Match) -> _Counts:
        matched_pair = self.plan.matched_pair(pair, match.hash)
        source, target = (sums[self._fired(key)] for key in pair)
        both = sums[counts_name("both", matched_pair)]
        if not match.one_partner:
            entries, partners = (
                sums[counts_name(kind, matched_pair)] for kind in ("entries", "partners")
            )
            return _Counts(both, source, partners, entries.sum(dim=1))
        partners = torch.zeros_like(both)
        partners[:, match.rows] = target[:, match.columns]
        return _Counts(both, source, partners, both.sum(dim=1))

    def _score_row(self, score: CoActivation) -> Row:
        row: Row = {}
        for metric in SCORE_METRICS:
            row |= self.replicates.row(metric, getattr(score, metric))
        return row | {count: getattr(score, count) for count in COUNTS}

    def layers(self, keys: Sequence[SaeKey]) -> list[Row]:
        """Return rows of ``layers``: each SAE as it was measured here, over all data sets."""
        weights = self.replicates.pooled()
        rows: list[Row] = []
        for key in keys:
            model = self.plan.model_of(key)
            n_tokens = self._all(labelled("n_tokens", model))
            fired = self._all(self._fired(key))
            norm = mean(weights, self._all(labelled(f"x_norm|{key.layer}", model)), n_tokens)
            rows.append(
                {
                    **key._asdict(),
                    **self.replicates.row(
                        "mean_l0", mean(weights, fired.sum(dim=1).double(), n_tokens)
                    ),
                    **self.replicates.row("mean_norm", norm),
                    "n_live": int(fired.any(dim=0).sum()),
                    "n_dead": int((~fired.any(dim=0)).sum()),
                    "n_texts": len(n_tokens),
                    "n_tokens": int(n_tokens.sum()),
                    "n_special": int(self._all(labelled("n_special", model)).sum()),
                }
            )
        return rows

    def fired(self, key: SaeKey) -> torch.Tensor:
        """Return on how many tokens each feature was active, over all data sets."""
        return self._all(self._fired(key)).sum(dim=0)

    def entries(self, pair: Pair, match: Match, entries: Sequence[int]) -> list[Row]:
        """Return how often the two features of single entries are active together.

        For each entry: ``matching_score`` and ``jaccard`` with intervals, over all data sets.
        """
        chosen = torch.tensor(entries, dtype=torch.int64)
        rows, columns = match.rows[chosen], match.columns[chosen]
        kind, counted = ("both", rows) if match.one_partner else ("entries", chosen)
        both = self._all(counts_name(kind, self.plan.matched_pair(pair, match.hash)))
        both = both[:, counted].double()
        own = self._all(self._fired(pair.source))[:, rows].double()
        partner = self._all(self._fired(pair.target))[:, columns].double()
        weights, row = self.replicates.pooled(), self.replicates.row
        hits, fired = weights @ both, weights @ own
        either = fired + weights @ partner - hits
        score, jaccard = share(hits, fired), share(hits, either)
        return [
            {
                **row("matching_score", score[:, n], fired[:, n]),
                **row("jaccard", jaccard[:, n], either[:, n]),
                "n_fired_source": int(own[:, n].sum()),
                "n_fired_target": int(partner[:, n].sum()),
            }
            for n in range(len(chosen))
        ]

    def _all(self, name: str) -> torch.Tensor:
        return torch.cat([sums[name] for sums in self.by_set.values()])

    def _fired(self, key: SaeKey) -> str:
        twin = self.plan.twins[key]
        return f"fired|{twin.suite}|{twin.layer}"

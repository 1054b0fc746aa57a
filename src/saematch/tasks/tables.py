"""The tables of an evaluation, from its sums by text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from saematch.evals.bootstrap import (
    Bootstrap,
    CoActivation,
    Values,
    Weights,
    co_activation,
    explained_variance,
    mean,
    share,
)
from saematch.evals.splice import SplicePlan, both_name
from saematch.evals.sums import TextSums
from saematch.matching.match import Match
from saematch.places import NO_ARM, POOLED, Place, SaeKey
from saematch.results import Row
from saematch.tasks.evaluate import Cell, partner_counts
from saematch.tasks.match import MatchSet
from saematch.tasks.means import SCORE_METRICS, SPLICE_METRICS, Means


class Tables:
    """Turns the sums of a run into rows; all metrics of a run share one bootstrap."""

    def __init__(
        self, plan: SplicePlan, by_set: Mapping[str, TextSums], bootstrap: Bootstrap
    ) -> None:
        self.plan = plan
        self.by_set = dict(by_set)
        self.bootstrap = bootstrap
        drawn = bootstrap.weights([len(sums["n_tokens"]) for sums in by_set.values()])
        self.weights: dict[str, Weights] = dict(zip(by_set, drawn, strict=True))
        self.means = Means(bootstrap)

    def strategies(self, cells: Sequence[Cell]) -> dict[str, list[Row]]:
        """Return the tables ``strategies`` and ``contrasts``.

        ``strategies`` has one row for each place, data set, arm, strategy and quantile.
        ``contrasts`` has the differences of one setting at a time: an arm to each later one under
        the same strategy, and the two strategies of an arm.
        """
        rows: list[Row] = []
        contrasts: list[Row] = []
        for place in dict.fromkeys(cell.splice.place for cell in cells):
            of_place = [cell for cell in cells if cell.splice.place == place]
            for dataset in self.by_set:
                measured = [self._cell(cell, dataset) for cell in of_place]
                for cell, metrics in zip(of_place, measured, strict=True):
                    rows.append(self._strategy_row(cell, dataset, metrics))
                    what = (cell.arm, dataset, cell.splice.strategy, cell.splice.quantile)
                    for metric in SPLICE_METRICS:
                        self.means.add(place, *what, metric, metrics[metric])
                contrasts += self._contrasts(of_place, measured, dataset)
        return {"strategies": rows, "contrasts": contrasts}

    def _cell(self, cell: Cell, dataset: str) -> dict[str, Values]:
        sums, weights = self.by_set[dataset], self.weights[dataset]
        name, layer = cell.evaluated.name, cell.splice.place.layer_to
        n_targets = sums["n_targets"]
        loss = mean(weights, sums[f"loss|{name}"], n_targets)
        variance = explained_variance(
            weights,
            sums[f"error_sum|{name}"],
            sums[f"error_square|{name}"],
            sums[f"x_sum|{layer}"],
            sums[f"x_square|{layer}"],
            sums["n_tokens"],
        )
        original = mean(weights, sums["loss_original"], n_targets)
        return {"explained_variance": variance, "delta_loss": loss - original, "loss": loss}

    def _strategy_row(self, cell: Cell, dataset: str, measured: Mapping[str, Values]) -> Row:
        sums = self.by_set[dataset]
        n_targets = int(sums["n_targets"].sum())
        row: Row = {
            **cell.splice.place._asdict(),
            "arm": cell.arm,
            "dataset": dataset,
            "strategy": cell.splice.strategy,
            "quantile": cell.splice.quantile,
        }
        for metric, values in measured.items():
            row |= self.bootstrap.row(metric, values)
        return row | {
            "loss_original": sums["loss_original"].sum().item() / n_targets,
            "n_texts": len(sums["n_tokens"]),
            "n_tokens": int(sums["n_tokens"].sum()),
            "n_special": int(sums["n_special"].sum()),
            "n_targets": n_targets,
        }

    def _contrasts(
        self, cells: Sequence[Cell], measured: Sequence[Mapping[str, Values]], dataset: str
    ) -> Iterator[Row]:
        at = [n for n, cell in enumerate(cells) if cell.arm != NO_ARM]
        for i in at:
            for j in (j for j in at if j > i):
                one, two = cells[i], cells[j]
                same = [
                    one.arm == two.arm,
                    one.splice.strategy == two.splice.strategy,
                    one.splice.quantile == two.splice.quantile,
                ]
                if sum(same) != 2 or not same[2]:
                    continue
                row: Row = {**one.splice.place._asdict(), "dataset": dataset}
                row |= {"arm": one.arm, "strategy": one.splice.strategy}
                row |= {"against_arm": two.arm, "against_strategy": two.splice.strategy}
                row |= {"quantile": one.splice.quantile}
                for metric in SPLICE_METRICS:
                    difference = measured[i][metric] - measured[j][metric]
                    row |= self.bootstrap.row(f"{metric}_difference", difference)
                yield row

    def activations(self, matches: MatchSet) -> list[Row]:
        """Return the rows of ``activations``: co-activation by place, arm and data set.

        The last data set of each is ``all`` of them together.
        """
        rows: list[Row] = []
        for place in matches.places:
            scored: dict[str, dict[str, CoActivation]] = {}
            for arm, of_arm in matches.hashes.items():
                found = of_arm[place]
                if found not in scored:  # arms may have found the same match
                    scored[found] = self._scores(place, matches.by_arm[arm][place], found)
                for dataset, scores in scored[found].items():
                    about: Row = {**place._asdict(), "arm": arm, "dataset": dataset}
                    rows.append(about | self._score_row(scores))
                    for metric in SCORE_METRICS:
                        values = getattr(scores, metric)
                        self.means.add(place, arm, dataset, None, None, metric, values)
        return rows

    def _scores(self, place: Place, match: Match, found: str) -> dict[str, CoActivation]:
        counts = [self._counts(sums, place, match, found) for sums in self.by_set.values()]
        scores = {
            dataset: co_activation(self.weights[dataset], *of_set)
            for dataset, of_set in zip(self.by_set, counts, strict=True)
        }
        pooled = [torch.cat(parts) for parts in zip(*counts, strict=True)]
        scores[POOLED] = co_activation(self._pooled(), *pooled)
        return scores

    def _counts(
        self, sums: TextSums, place: Place, match: Match, found: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return counts by text and earlier feature: both, the feature, its partner."""
        earlier, later = (self._fired(key) for key in (place.earlier, place.later))
        both = sums[both_name(self.plan.pairing(place, found))]
        return both, sums[earlier], partner_counts(match, sums[later])

    def _score_row(self, score: CoActivation) -> Row:
        row: Row = {}
        for metric in SCORE_METRICS:
            row |= self.bootstrap.row(metric, getattr(score, metric))
        for count in ("n_live", "n_dead", "n_dead_partners"):
            row[count] = getattr(score, count)
        return row

    def layers(self, keys: Sequence[SaeKey]) -> list[Row]:
        """Return columns of ``layers``: each SAE as it was measured here, over all data sets."""
        weights = self._pooled()
        n_tokens = self._all("n_tokens")
        rows: list[Row] = []
        for key in keys:
            fired = self._all(self._fired(key))
            norm = mean(weights, self._all(f"x_norm|{key.layer}"), n_tokens)
            rows.append(
                {
                    **self.bootstrap.row(
                        "mean_l0", mean(weights, fired.sum(dim=1).double(), n_tokens)
                    ),
                    **self.bootstrap.row("mean_norm", norm),
                    "n_live": int(fired.any(dim=0).sum()),
                    "n_dead": int((~fired.any(dim=0)).sum()),
                    "n_texts": len(n_tokens),
                    "n_tokens": int(n_tokens.sum()),
                    "n_special": int(self._all("n_special").sum()),
                }
            )
        return rows

    def fired(self, key: SaeKey) -> torch.Tensor:
        """Return on how many tokens each feature was active, over all data sets."""
        return self._all(self._fired(key)).sum(dim=0)

    def features(self, place: Place, match: Match, features: Sequence[int]) -> list[Row]:
        """Return how often single features and their partners are active together.

        For each feature: ``matching_score`` and ``jaccard`` with intervals, over all data sets.
        """
        parts = [self._counts(sums, place, match, match.hash) for sums in self.by_set.values()]
        both, own, its = (
            torch.cat(counts)[:, list(features)].double() for counts in zip(*parts, strict=True)
        )
        weights = self._pooled()
        hits, fired = weights @ both, weights @ own
        either = fired + weights @ its - hits
        return [
            {
                **self.bootstrap.row("matching_score", share(hits[:, n], fired[:, n])),
                **self.bootstrap.row("jaccard", share(hits[:, n], either[:, n])),
                "n_fired_from": int(own[:, n].sum()),
                "n_fired_to": int(its[:, n].sum()),
            }
            for n in range(len(features))
        ]

    def _pooled(self) -> Weights:
        return torch.cat(list(self.weights.values()), dim=1)

    def _all(self, name: str) -> torch.Tensor:
        return torch.cat([sums[name] for sums in self.by_set.values()])

    def _fired(self, key: SaeKey) -> str:
        twin = self.plan.twins[key]
        return f"fired|{twin.saes}|{twin.layer}"

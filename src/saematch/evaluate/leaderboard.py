"""The evaluation ``leaderboard``: rank the arms of a run on every metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch

from saematch.core.columns import EXPLAINED_VARIANCE, Column, share
from saematch.core.match import Match
from saematch.core.pairs import POOLED, Pair, suites_of
from saematch.core.specs import AtLeast1, Some, brief, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.co_activation import live_part
from saematch.evaluate.counts import JACCARD, MATCHING_SCORE
from saematch.evaluate.effects import ranked_partners
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.evaluate.intervals import Replicates, Values
from saematch.evaluate.measures import Measures
from saematch.evaluate.parts import Part, parts_of
from saematch.evaluate.ranking import rank
from saematch.evaluate.skipping import DELTA_LOSS
from saematch.evaluate.verify_columns import CONTROLLED, OVER_RANDOM
from saematch.matching.arm import Arm

ONE, SEVERAL = "one", "several"
"""Classes of arms that are ranked separately where several partners are an advantage by count."""
RECALL_AT = share(
    "recall_at", "recall at k",
    "share of the pairs of the true match whose target is among the k best partners",
)  # fmt: skip
RECALL_AT_LIVE = share(
    "recall_at_live", "recall at k of live features",
    "recall at k over source features that fired on the texts",
)  # fmt: skip
SECONDS = Column(
    "seconds", "time of a match", "lower", "s", least=0.0,
    meaning="seconds to compute the similarity and the match of a pair, when it was first solved; "
    "recordings that all arms share are not counted",
)  # fmt: skip
PEAK_MEMORY = Column(
    "peak_memory", "peak memory of a match", "lower", "MiB", least=0.0,
    meaning="largest resident memory of the process during the match, minus that before it",
)  # fmt: skip
BY_STRATEGY = (EXPLAINED_VARIANCE.name, DELTA_LOSS.name)
BY_CLASS = (MATCHING_SCORE.name, JACCARD.name)
BY_K = tuple(OVER_RANDOM[column].name for column in CONTROLLED)


class Metric(NamedTuple):
    """A metric on which arms are ranked."""

    column: Column
    strategy: str | None = None
    """Strategy of decoding; None for a metric without one."""
    k: int | None = None
    """Number of best partners; None for a metric of the whole match."""
    partners: str | None = None
    """Class of the arms, ``one`` or ``several`` partners; None if all arms are compared."""

    def columns(self) -> Row:
        """Return the key columns of the metric."""
        return {"metric": self.column.name, **dict(zip(_METRIC[1:], self[1:], strict=True))}


_METRIC = ("metric", "strategy", "k", "partners")
Scores = dict[Metric, dict[str, dict[Pair, Values]]]
"""Values with replicates of each metric by arm and pair; without replicates if they are exact."""


@spec("evaluations.leaderboard")
class Leaderboard(Evaluation):
    """Spec of the evaluation ``leaderboard``: ranks of all arms on the metrics of the run.

    It ranks the metrics of the other evaluations that the run has: ``skipping``, ``co_activation``
    and ``verify``.
    """

    columns: ClassVar[tuple[Column, ...]] = (RECALL_AT, RECALL_AT_LIVE, SECONDS, PEAK_MEMORY)

    partners: Some[AtLeast1] = (1, 5, 20)
    """Numbers of best partners for the recall of a known true match."""

    def summary_tables(self, subject: Subject, tables: Tables) -> Tables:
        """Return the tables of ranks, winners, arms and costs.

        ``leaderboard`` has a row for each part of the run (``parts_of``), metric and arm: the mean
        over pairs, its rank (``rank``), and its difference from the first arm that has the metric.
        ``leaderboard_winners`` has the arms of rank 1. ``leaderboard_arms`` has the cost of each
        arm and what it reads, and ``match_costs`` the cost of each match.
        """
        rows = list(self._rows(subject))
        rows_by_table: dict[str, list[Row]] = {
            "leaderboard": [*rows, *_judged(tables)],
            "leaderboard_winners": list(_winners(rows)),
            "leaderboard_arms": list(_arms(subject)),
            "match_costs": _costs(subject),
        }
        return Tables.of({name: of_table for name, of_table in rows_by_table.items() if of_table})

    def _rows(self, subject: Subject) -> Iterator[Row]:
        whole, by_stratum = self._scores(subject)
        replicates = None if subject.measures is None else subject.measures.replicates
        for part in parts_of(subject):
            yield from _part_rows(part, whole, replicates)
            for stratum, scores in by_stratum.items() if part.by == "all" else ():
                of_stratum = part._replace(by="stratum", part=str(stratum))
                yield from _part_rows(of_stratum, scores, replicates)

    def _scores(self, subject: Subject) -> tuple[Scores, dict[int, Scores]]:
        """Return the metrics over all features, and those by stratum of activity."""
        one_partner = {
            arm: all(match.one_partner for match in of_arm.values())
            for arm, of_arm in subject.matches.by_arm.items()
        }
        classes = {arm: ONE if single else SEVERAL for arm, single in one_partner.items()}
        whole, strata = _measured(subject.measures, classes)
        for metric, arm, pair, value in self._recalls(subject):
            whole.setdefault(metric, {}).setdefault(arm, {})[pair] = value
        return whole, strata

    def _recalls(self, subject: Subject) -> Iterator[tuple[Metric, str, Pair, Values]]:
        """Yield the recall of each match at each number of partners that it has."""
        for pair in subject.matches.pairs:
            truth = subject.truth(pair)
            live = None
            if subject.counts is not None:
                live = live_part(truth, subject.counts.fired(pair.source))
            for arm, match in subject.matches.of(pair).items():
                partners = ranked_partners(match)
                for k in self.partners:
                    if k > max(partners.shape[1], 1):
                        continue
                    for column, part in ((RECALL_AT, truth), (RECALL_AT_LIVE, live)):
                        if part is not None and len(part.rows):
                            best = torch.from_numpy(partners[:, :k])[part.rows]
                            yield Metric(column, k=k), arm, pair, recall_among(best, part)


def recall_among(partners: torch.Tensor, truth: Match) -> Values:
    """Return the share of the true pairs whose target is among the source's ``partners``."""
    return (partners == truth.columns[:, None]).any(dim=1).double().mean()[None]


def _measured(
    measures: Measures | None, classes: Mapping[str, str]
) -> tuple[Scores, dict[int, Scores]]:
    """Return the ranked metrics that the run measured on texts, whole and by stratum.

    A metric that was measured on each text set becomes the mean over text sets.
    """
    whole: Scores = {}
    strata: dict[int, Scores] = defaultdict(dict)
    of_sets: dict[tuple[Metric, str, Pair], list[Values]] = defaultdict(list)
    for key, (column, values) in ({} if measures is None else measures.kept).items():
        cell, k = key.cell, key.k
        if cell.arm not in classes or cell.quantile is not None:
            continue
        if column.name in BY_STRATEGY and cell.strategy is not None:
            of_sets[Metric(column, cell.strategy), cell.arm, cell.pair].append(values)
        elif column.name in BY_CLASS and cell.dataset == POOLED:
            metric = Metric(column, partners=classes[cell.arm])
            whole.setdefault(metric, {}).setdefault(cell.arm, {})[cell.pair] = values
        elif column.name in BY_K and k is not None:
            scores = whole if key.stratum is None else strata[key.stratum]
            of_metric = scores.setdefault(Metric(column, k=k), {})
            of_metric.setdefault(cell.arm, {})[cell.pair] = values
    for (metric, arm, pair), parts in of_sets.items():
        mean = torch.stack(parts).mean(dim=0)
        whole.setdefault(metric, {}).setdefault(arm, {})[pair] = mean
    return whole, strata


def _part_rows(part: Part, scores: Scores, replicates: Replicates | None) -> Iterator[Row]:
    """Yield the rows of ``leaderboard`` of one part."""
    for metric, by_arm in scores.items():
        of_part = {
            arm: {pair: values for pair, values in by_pair.items() if pair in part.pairs}
            for arm, by_pair in by_arm.items()
        }
        of_part = {arm: by_pair for arm, by_pair in of_part.items() if by_pair}
        if not of_part:
            continue
        for row in rank(metric.column, of_part, replicates):
            yield {**part.columns(), **metric.columns(), **row.columns()}


def _winners(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows of ``leaderboard_winners``: the arms of rank 1."""
    keys = (*Part._fields[:3], *_METRIC)
    grouped: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[tuple(row[key] for key in keys)].append(row)
    for key, of_metric in grouped.items():
        best = [str(row["arm"]) for row in of_metric if row["rank"] == 1]
        if best:
            winners: Row = {**dict(zip(keys, key, strict=True)), "arms": ", ".join(best)}
            yield winners | {"n_best": len(best), "n_arms": len(of_metric)}


def _judged(tables: Tables) -> Iterator[Row]:
    """Yield the judge's score of each arm over all pairs, which has no rank."""
    for row in tables.rows("judge_scores"):
        if row["role"] != "pair" or row["source_layer"] is not None or row["arm"] is None:
            continue
        part = Part(suites_of(row), "all", "all", frozenset())
        yield {
            **part.columns(), "metric": "judge_score", "arm": row["arm"],
            "value": row["judge_score"], "low": row["judge_score_low"],
            "high": row["judge_score_high"],
        }  # fmt: skip


def _costs(subject: Subject) -> list[Row]:
    """Return the rows of ``match_costs``."""
    return [
        {**pair.columns(), "arm": arm, "seconds": cost.seconds, "peak_memory": cost.memory}
        for (arm, pair), cost in subject.matches.costs.items()
    ]


def matcher_of(arm: Arm) -> str:
    """Return the matcher of an arm, and whether it composes or synchronises matches."""
    composed = ["composed"] if arm.compose else []
    synchronised = [] if arm.synchronise is None else [brief(arm.synchronise)]
    return ", ".join([brief(arm.matcher), *composed, *synchronised])


def _arms(subject: Subject) -> Iterator[Row]:
    """Yield the rows of ``leaderboard_arms``: mean time, largest memory, and what an arm reads."""
    for name, arm in subject.arms.items():
        costs = [cost for (of_arm, _), cost in subject.matches.costs.items() if of_arm == name]
        memory = [cost.memory for cost in costs if cost.memory is not None]
        yield {
            "arm": name,
            "reads": ", ".join(arm.reads),
            "objective": brief(arm.objective) + (", transported" if arm.transported else ""),
            "matcher": matcher_of(arm),
            "fold": arm.fold,
            "seconds": sum(cost.seconds for cost in costs) / len(costs) if costs else None,
            "peak_memory": max(memory, default=None),
            "n_pairs": len(subject.matches.by_arm.get(name, {})),
        }

"""Tables of judgements: mean scores with intervals over feature paths, agreement, errors."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import torch

from saematch.chat.questions import Judge
from saematch.core.columns import Column, share
from saematch.core.match import Match
from saematch.core.pairs import PAIR_COLUMNS, Pair
from saematch.core.tables import Row, Tables
from saematch.evaluate.intervals import Intervals, Values
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.judge.design import AGAIN, CONTROLS, Item
from saematch.judge.judging import Judgement
from saematch.judge.verdicts import LABELS, SCORES, kappa
from saematch.sae.suites import Saes

JUDGE_SCORE = Column(
    "judge_score", "judge score", "higher", "", 1.0, 3.0, interval=True, logged=("matches",),
    meaning="mean of the labels DIFFERENT (1), MAYBE (2) and SAME (3)",
)  # fmt: skip
SAME_SHARE = share(
    "same_share", "share of SAME", "share of SAME among the labels of judgements",
    interval=True, logged=("matches",),
)  # fmt: skip
KAPPA = Column(
    "kappa", "Cohen's kappa", "higher", "", -1.0, 1.0, interval=True,
    meaning="agreement of two judgements of the same pairs beyond chance",
)  # fmt: skip
SCORE_DIFFERENCE = Column(
    "score_difference", "difference in judge score", interval=True,
    meaning="mean over pairs that were judged again of the second score minus the first",
)  # fmt: skip
COLUMNS: tuple[Column, ...] = (JUDGE_SCORE, SAME_SHARE, KAPPA, SCORE_DIFFERENCE)
_AGREEMENT = share("agreement", "same label when judged again", "share of equal labels")
"""Metric of the table ``judge_agreement``; in other tables, ``agreement`` compares matches."""

ROLES = ("pair", *CONTROLS)
"""Roles with scores of their own; judgements with a role in ``AGAIN`` are compared with pairs."""


def columns_of(judge: Judge) -> tuple[Column, ...]:
    """Return the definitions of a judge's metrics; their labels say if the judge is no LLM."""
    if not judge.remark:
        return COLUMNS
    return tuple(replace(column, label=f"{column.label} ({judge.remark})") for column in COLUMNS)


def judge_tables(judgements: Sequence[Judgement], saes: Saes, intervals: Intervals) -> Tables:
    """Return the tables of a judged run."""
    errors = _errors(judgements, saes)
    scores = _Scores(judgements, intervals)
    rows = {
        "judgements": [j.row() | {"mse_W_dec": errors[_pair(j.item)]} for j in judgements],
        "judge_scores": scores.by_pair(),
        "judge_contrasts": scores.contrasts(),
        "judge_agreement": _agreement(judgements, intervals),
        "judge_explainers": scores.by_explainers(),
        "mse_by_label": _mse_by_label(judgements, errors),
    }
    return Tables.of(rows, COLUMNS)


class _Mean(NamedTuple):
    """A mean score and its number of judgements, each with its replicates."""

    values: Values
    counts: Values


class _Scores:
    """Mean scores; a replicate leaves out a path with all its steps."""

    def __init__(self, judgements: Sequence[Judgement], intervals: Intervals) -> None:
        self.judgements = [j for j in judgements if j.item.role in ROLES]
        groups: dict[tuple, dict[int, int]] = defaultdict(dict)
        for judgement in self.judgements:
            paths = groups[_group(judgement.item)]
            paths.setdefault(judgement.item.path, len(paths))
        self.replicates = intervals.replicates([len(paths) for paths in groups.values()])
        self.weights = self.replicates.pooled()
        self.columns: dict[tuple, int] = {}
        for group, paths in groups.items():
            first = len(self.columns)
            self.columns |= {(group, path): first + n for path, n in paths.items()}

    def by_pair(self) -> list[Row]:
        """Return the rows of ``judge_scores``: by role, arm and pair, then over all pairs."""
        rows = [
            {**pair.columns(), "role": role, "arm": arm, **self._row(of_pair)}
            for (role, arm, pair), of_pair in self._grouped(
                lambda i: (i.role, i.arm, i.pair)
            ).items()
        ]
        overall = self._grouped(lambda i: (i.role, i.arm, i.pair.source.suite, i.pair.target.suite))
        for (role, arm, source, target), of_suites in overall.items():
            suites = dict(zip(PAIR_COLUMNS, (source, None, target, None), strict=True))
            rows.append({**suites, "role": role, "arm": arm, **self._row(of_suites)})
        return rows

    def contrasts(self) -> list[Row]:
        """Return the rows of ``judge_contrasts``: one arm's mean score minus another's."""
        of_cell = self._grouped(lambda i: (i.pair, i.arm) if i.role == "pair" else None)
        arms = dict.fromkeys(arm for _, arm in of_cell)
        rows: list[Row] = []
        for pair in dict.fromkeys(pair for pair, _ in of_cell):
            judged = [arm for arm in arms if (pair, arm) in of_cell]
            for arm, against in combinations(judged, 2):
                first, second = (self._mean(of_cell[pair, name]) for name in (arm, against))
                row: Row = {**pair.columns(), "arm": arm, "against_arm": against}
                difference, whole = first.values - second.values, first.counts + second.counts
                row |= self.replicates.row(JUDGE_SCORE.difference, difference, whole)
                rows.append(row)
        return rows

    def by_explainers(self) -> list[Row]:
        """Return the rows of ``judge_explainers``: scores by the explainers of both features."""
        by_key: dict[tuple, list[Judgement]] = defaultdict(list)
        for j in self.judgements:
            if j.source and j.target:
                explainers = j.source.explainer, j.target.explainer
                by_key[(j.item.role, j.item.arm, *explainers)].append(j)
        names = ("role", "arm", "source_explainer", "target_explainer")
        return [
            {**dict(zip(names, key, strict=True)), **self._row(of_key)}
            for key, of_key in by_key.items()
        ]

    def _grouped(self, key: Callable[[Item], tuple | None]) -> dict[tuple, list[Judgement]]:
        """Return the judgements by key, without those whose key is None."""
        groups: dict[tuple, list[Judgement]] = defaultdict(list)
        for judgement in self.judgements:
            group = key(judgement.item)
            if group is not None:
                groups[group].append(judgement)
        return groups

    def _row(self, judgements: Sequence[Judgement]) -> Row:
        labels = Counter(judgement.verdict.label for judgement in judgements)
        row: Row = {"n_judgements": len(judgements)}
        row |= {f"n_{label.lower()}": labels[label] for label in LABELS}
        row |= self.replicates.row(JUDGE_SCORE, *self._mean(judgements))
        same = self._mean(judgements, lambda score: score == SCORES["SAME"])
        return row | self.replicates.row(SAME_SHARE, *same)

    def _mean(
        self, judgements: Sequence[Judgement], metric: Callable[[int], float] = float
    ) -> _Mean:
        """Return the mean over judgements that have a score; NaN if none has."""
        sums = torch.zeros(self.weights.shape[1], dtype=torch.float64)
        counts = torch.zeros_like(sums)
        for judgement in judgements:
            score = judgement.verdict.score
            if score is not None:
                column = self.columns[_group(judgement.item), judgement.item.path]
                sums[column] += metric(score)
                counts[column] += 1
        counted = self.weights @ counts
        return _Mean((self.weights @ sums) / counted, counted)


def _group(item: Item) -> tuple:
    """Return the group of an item: paths from one first layer, or controls of one pair."""
    pair = item.pair.suites if item.role == "pair" else item.pair
    return item.role, pair, item.start


def _agreement(judgements: Sequence[Judgement], intervals: Intervals) -> list[Row]:
    """Return the rows of ``judge_agreement``: pairs that were judged again.

    ``score_difference`` is the second score minus the first; for swapped pairs it is the position
    bias. Pairs without a score are counted and left out. Replicates leave out paths.
    """
    scores = {j.item: j.verdict.score for j in judgements}
    rows: list[Row] = []
    for role in AGAIN:
        both = {item: (scores[replace(item, role="pair")], scores[item])
                for item in scores if item.role == role}  # fmt: skip
        scored = {item: pair for item, pair in both.items() if None not in pair}
        if not both:
            continue
        row: Row = {"compared": role, "n_pairs": len(scored), "n_unscored": len(both) - len(scored)}
        ends = ("", "_low", "_high")
        row |= dict.fromkeys(f"{metric.name}{end}" for metric in _AGAIN for end in ends)
        if scored:
            first, second = torch.tensor(list(scored.values())).T
            paths = [(item.pair.suites, item.start, item.path) for item in scored]
            column = {path: n for n, path in enumerate(dict.fromkeys(paths))}
            replicates = intervals.replicates([len(column)])
            weights = replicates.weights[0][:, [column[path] for path in paths]]
            n = weights.sum(dim=1)
            measured = (
                weights @ (first == second).double() / n,
                kappa(weights, first, second),
                weights @ (second - first).double() / n,
            )
            for metric, values in zip(_AGAIN, measured, strict=True):
                row |= replicates.row(metric, values)
        rows.append(row)
    return rows


_AGAIN = (_AGREEMENT, KAPPA, SCORE_DIFFERENCE)


def _pair(item: Item) -> tuple[Pair, int, int]:
    return item.pair, item.source_feature, item.target_feature


def _errors(judgements: Sequence[Judgement], saes: Saes) -> dict[tuple[Pair, int, int], float]:
    """Return the squared error of the folded decoder vectors of every pair of features."""
    of_pair: dict[Pair, set[tuple[int, int]]] = defaultdict(set)
    for pair, *features in (_pair(judgement.item) for judgement in judgements):
        of_pair[pair].add(tuple(features))  # type: ignore[arg-type]
    errors: dict[tuple[Pair, int, int], float] = {}
    for pair in sorted(of_pair):  # so that each SAE is loaded once
        pairs = sorted(of_pair[pair])
        of_pair_errors = _errors_of(saes, pair, pairs)
        errors |= {(pair, *p): e for p, e in zip(pairs, of_pair_errors, strict=True)}
    return errors


def _errors_of(saes: Saes, pair: Pair, pairs: Sequence[tuple]) -> list[float]:
    source, target = saes[pair.source], saes[pair.target]
    rows, columns = torch.tensor(pairs).T
    ones = torch.ones(len(rows), dtype=torch.float64)
    match = Match(rows, columns, ones, source.n_features, target.n_features)
    return feature_mse(FoldedPair(source, target), match).tolist()


def _mse_by_label(
    judgements: Sequence[Judgement], errors: Mapping[tuple[Pair, int, int], float]
) -> list[Row]:
    """Return the rows of ``mse_by_label``: the decoder's error of the pairs with each label.

    Two features that are on several paths count as one pair.
    """
    of_label: dict[tuple[Pair, str, str], dict[tuple, float]] = defaultdict(dict)
    for judgement in judgements:
        item = judgement.item
        error = errors[_pair(item)]
        if item.role == "pair" and judgement.verdict.score is not None and not math.isnan(error):
            errors_of = of_label[item.pair, item.arm, judgement.verdict.label]
            errors_of[_pair(item)] = error
    rows: list[Row] = []
    for pair, arm in dict.fromkeys((pair, arm) for pair, arm, _ in of_label):
        for label in SCORES:
            values = torch.tensor([*of_label[pair, arm, label].values()], dtype=torch.float64)
            row: Row = {**pair.columns(), "arm": arm, "label": label, "n_pairs": len(values)}
            row["mse_mean"] = values.mean().item() if len(values) else None
            for name, quantile in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
                row[f"mse_{name}"] = values.quantile(quantile).item() if len(values) else None
            rows.append(row)
    return rows


def score_matches(tables: Tables) -> None:
    """Add the judge's scores of single pairs to the table ``matches``."""
    scores = tables["judge_scores"]
    if len(scores):
        of_pairs = scores[(scores["role"] == "pair") & scores["source_layer"].notna()]
        tables.add("matches", of_pairs[[*PAIR_COLUMNS, "arm", *_IN_MATCHES]])


_IN_MATCHES = ("judge_score", "judge_score_low", "judge_score_high", "same_share",
               "n_judgements", *(f"n_{label.lower()}" for label in SCORES))  # fmt: skip

"""Effects of single features: findings, and rank correlations with other measures of a match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from scipy.special import stdtrit
from scipy.stats import norm, rankdata, spearmanr
from torch import Tensor
from torch.nn.functional import cosine_similarity

from saematch.core.files import replacing
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.tables import Row
from saematch.evaluate.effects import NONE, Effects, ranked_partners
from saematch.evaluate.intervals import Values
from saematch.evaluate.verify_columns import FLOOR_95, SPEARMAN
from saematch.evaluate.verify_tables import PairTables
from saematch.evaluate.weights import FoldedPair, row_errors

N_FOR_VERDICT = 8
"""Least number of events for a verdict on a feature; they must be in two texts or more."""
QUANTILE = 0.95
PASSES, FAILS = "passes", "fails"
TOO_FEW, UNMATCHED = "too few events", "no partner"
PAIRS_AT_ONCE = 1 << 22
"""Numbers of effects, of a text on a feature, in memory at a time."""


class FeatureMeans(NamedTuple):
    """Mean effect of each source feature on its best partner, with an interval over texts."""

    n_events: Int64[np.ndarray, " n_source"]
    n_active: Int64[np.ndarray, " n_source"]
    """Number of events in which the partner was active."""
    off_rate: Float64[np.ndarray, " n_source"]
    """NaN without events."""
    effect: Float64[np.ndarray, " n_source"]
    """NaN without events."""
    low: Float64[np.ndarray, " n_source"]
    high: Float64[np.ndarray, " n_source"]
    """Ends of the interval; NaN with events in fewer than two texts."""


@dataclass(frozen=True)
class FeatureTables:
    """Computes the rows of single features of one pair."""

    tables: PairTables

    @cached_property
    def sampled(self) -> Effects:
        """The effects of removing features, sampled by feature."""
        removed = self.tables.removed
        return removed.only(removed.columns["by_feature"])

    def means(self, partners: Int64[np.ndarray, " n_source"]) -> FeatureMeans:
        """Return the mean effect of each feature on a target.

        The interval is that of a ratio of sums over texts (linearised, Student's t with as many
        degrees of freedom as the feature has texts, less one).
        """
        effects, n = self.sampled, len(partners)
        outcome = effects.of_partners(partners[effects.features][:, None])
        features = effects.features
        counts = np.bincount(features, minlength=n)
        whole = np.maximum(counts, 1)
        effect, off_rate = (
            np.bincount(features, values[:, 0], n) / whole for values in (outcome.D, outcome.off)
        )
        clusters, numbers = np.unique(
            features * self.tables.weights.shape[1] + effects.columns["text"], return_inverse=True
        )
        of_cluster = clusters // self.tables.weights.shape[1]
        deviations = np.bincount(numbers, outcome.D[:, 0] - effect[features], len(clusters))
        n_texts = np.bincount(of_cluster, minlength=n)
        freedom = np.maximum(n_texts - 1, 1)
        variance = np.bincount(of_cluster, deviations**2, n) * n_texts / freedom / whole**2
        half = stdtrit(freedom, (1 + self.tables.replicates.level) / 2) * np.sqrt(variance)
        half = np.where(n_texts >= 2, half, np.nan)
        effect = np.where(counts > 0, effect, np.nan)
        return FeatureMeans(
            counts,
            np.bincount(features, outcome.active[:, 0], n).astype(np.int64),
            np.where(counts > 0, off_rate, np.nan),
            effect,
            np.maximum(effect - half, -1),
            np.minimum(effect + half, 1),
        )

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted source features of all entries, and the number of each entry in this order."""
        of_entries = self.sampled.features[self.sampled.events]
        order = np.argsort(of_entries, kind="stable")
        return of_entries[order], order

    def floor(self, feature: int, partner: int) -> float:
        """Return the 95th percentile of a feature's mean effect on the targets of a decile.

        The targets are those of the partner's decile of activity, without the partner.
        """
        effects, groups = self.sampled, self.tables.verified.groups
        features, order = self._entries
        entries = order[slice(*np.searchsorted(features, [feature, feature + 1]))]
        sums = np.bincount(effects.targets[entries], effects.D[entries], len(groups))
        effect = sums / max(int((effects.features == feature).sum()), 1)
        controls = groups == groups[partner]
        controls[partner] = False
        return float(np.quantile(effect[controls], QUANTILE)) if controls.any() else 0.0

    def frame(self, chosen: tuple[int, ...] = ()) -> pd.DataFrame:
        """Return a row for each arm and source feature: its best partner, effect and finding.

        The features are those that are tested, and the chosen ones.
        """
        parts = []
        tested = np.flatnonzero(self.tables.verified.tested.numpy())
        tested = np.union1d(tested, np.array(chosen, dtype=np.int64))
        for name, ranked in self.tables.arms.items():
            partners = ranked[:, 0]
            means = self.means(partners)
            frame = pd.DataFrame({"arm": name, "feature": tested, "partner": partners[tested]})
            for column in ("n_events", "n_active", "off_rate", "effect"):
                frame[column] = getattr(means, column)[tested]
            frame["effect_low"], frame["effect_high"] = means.low[tested], means.high[tested]
            enough = (frame["n_events"] >= N_FOR_VERDICT) & (frame["partner"] != NONE)
            enough &= frame["effect_low"].notna()
            frame[FLOOR_95.name] = [
                self.floor(int(feature), int(partner)) if judged else np.nan
                for feature, partner, judged in zip(tested, frame["partner"], enough, strict=True)
            ]
            passing = frame["effect_low"] > frame[FLOOR_95.name]
            frame["finding"] = np.where(enough, np.where(passing, PASSES, FAILS), TOO_FEW)
            frame.loc[frame["partner"] == NONE, "finding"] = UNMATCHED
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    def save(self, folder: Path, chosen: tuple[int, ...] = ()) -> pd.DataFrame:
        """Write the frame to ``folder/<pair>.parquet`` and return it."""
        frame = self.frame(chosen)
        with replacing(parquet_path(folder, self.tables.pair)) as path:
            frame.to_parquet(path, index=False)
        return frame

    def verdicts(self, frame: pd.DataFrame) -> Iterator[Row]:
        """Yield the rows of ``verify_verdicts``: the number of features that pass, by arm."""
        for name, of_arm in frame.groupby("arm", sort=False):
            judged = of_arm[of_arm["finding"].isin([PASSES, FAILS])]
            if len(judged):
                row: Row = {**self.tables.pair.columns(), "arm": str(name)}
                row |= {"n_judged": len(judged)}
                yield row | {"n_passing": int((judged["finding"] == PASSES).sum())}

    def chosen(self, frame: pd.DataFrame, features: tuple[int, ...]) -> Iterator[Row]:
        """Yield the rows of ``verify_features``: those of chosen features."""
        for values in frame[frame["feature"].isin(features)].to_dict("records"):
            row: Row = {**self.tables.pair.columns()}
            for name, value in values.items():
                missing = isinstance(value, float) and np.isnan(value)
                row[str(name)] = None if missing or value == NONE else value
            yield row

    def correlations(self, measures: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Row]:
        """Yield the rows of ``verify_correlations``.

        ``measures`` has, by arm and name of the measure, a value for each source feature, NaN where
        there is none.
        """
        for name, ranked in self.tables.arms.items():
            effects = self.effects_by_replicate(ranked[:, 0])
            for measure, of_features in measures.get(name, {}).items():
                values = of_features.numpy()
                measured = ~np.isnan(values) & ~np.isnan(effects[0]) & (ranked[:, 0] != NONE)
                if measured.sum() < 3:
                    continue
                row: Row = {**self.tables.pair.columns(), "arm": name, "measure": measure}
                correlation = spearman(effects[:, measured], values[measured])
                row |= self.tables.replicates.row(SPEARMAN, correlation)
                yield row | {"n_features": int(measured.sum())}

    def effects_by_replicate(
        self, partners: Int64[np.ndarray, " n_source"]
    ) -> Float64[np.ndarray, "n_values n_source"]:
        """Return the mean effect of each feature in every replicate; NaN without events."""
        effects, n = self.sampled, len(partners)
        outcome = effects.of_partners(partners[effects.features][:, None])
        weights = self.tables.weights.numpy()
        n_texts = weights.shape[1]
        result = np.full((len(weights), n), np.nan)
        size = max(1, PAIRS_AT_ONCE // max(n_texts, 1))
        for start in range(0, n, size):
            inside = (effects.features >= start) & (effects.features < start + size)
            width = min(size, n - start)
            places = effects.columns["text"][inside] * width + effects.features[inside] - start
            sums, counts = (
                weights @ np.bincount(places, values, n_texts * width).reshape(n_texts, width)
                for values in (outcome.D[inside, 0], np.ones(int(inside.sum())))
            )
            np.divide(sums, counts, out=result[:, start : start + width], where=counts > 0)
        return result


def spearman(
    effects: Float64[np.ndarray, "n_values n"], measure: Float64[np.ndarray, " n"]
) -> Values:
    """Return the rank correlation with every row of effects.

    A feature without an effect in a row, because all of its texts were left out, keeps the effect
    of the first row.
    """
    filled = np.where(np.isnan(effects), effects[:1], effects)
    ranks = rankdata(filled, axis=1)
    of_measure = rankdata(measure) - (len(measure) + 1) / 2
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1) * (of_measure**2).sum())
    products = ranks @ of_measure
    return torch.from_numpy(
        np.divide(products, scale, out=np.full(len(scale), np.nan), where=scale > 0)
    )


def weight_measures(tables: PairTables) -> dict[str, dict[str, Tensor]]:
    """Return cosine and squared error of each feature and its best partner, by arm."""
    source, target = (tables.subject.saes[key] for key in tables.pair)
    folded = FoldedPair(source, target)
    measures = {}
    for name, match in tables.subject.matches.of(tables.pair).items():
        best = Match.from_columns(torch.from_numpy(ranked_partners(match)[:, 0]), match.n_target)
        cosine = torch.full((match.n_source,), torch.nan, dtype=torch.float64)
        error = cosine.clone()
        d, e = source.W_dec[best.rows].double(), target.W_dec[best.columns].double()
        cosine[best.rows] = cosine_similarity(d, e, dim=1)
        error[best.rows] = row_errors(folded, best).double()
        measures[name] = {"cosine": cosine, "squared_error": error}
    return measures


def activity_measures(tables: PairTables) -> dict[str, dict[str, Tensor]]:
    """Return Jaccard index and matching score of each feature and its partners, by arm.

    Empty in a run that did not count co-activation.
    """
    counts = tables.subject.counts
    if counts is None:
        return {}
    measures = {}
    for name, match in tables.subject.matches.of(tables.pair).items():
        parts = counts.of_pair(tables.pair, match).values()
        both, fired, fired_target = (
            sum(getattr(part, field).sum(dim=0).double() for part in parts)
            for field in ("both", "fired_source", "fired_target")
        )
        either = fired + fired_target - both
        measures[name] = {"jaccard": both / either, "matching_score": both / fired}
    return measures


def parquet_path(folder: Path, pair: Pair) -> Path:
    """Return the file of the effects of all features of a pair."""
    return folder / f"{pair.label}.parquet"


def judge_correlations(
    pair: Pair, effects: pd.DataFrame, judgements: pd.DataFrame, level: float
) -> Iterator[Row]:
    """Yield the rank correlation of effects with the judge's scores, by arm.

    ``effects`` has the features of the pair (``FeatureTables.frame``). The interval, of probability
    ``level``, is that of Bonett and Wright (2000) for independent features.
    """
    if judgements.empty:
        return
    of_pair = judgements[judgements["role"] == "pair"].dropna(subset=["judge_score"])
    for name, value in pair.columns().items():
        of_pair = of_pair[of_pair[name] == value]
    keys = ["arm", "feature", "partner"]
    scores = of_pair.rename(columns={"source_feature": "feature", "target_feature": "partner"})
    scores = scores.groupby(keys, as_index=False)["judge_score"].mean()
    joined = effects.dropna(subset=["effect"]).merge(scores, on=keys)
    for name, of_arm in joined.groupby("arm", sort=False):
        n = len(of_arm)
        varied = of_arm["effect"].nunique() > 1 and of_arm["judge_score"].nunique() > 1
        if n < 4 or not varied:
            continue
        r = float(spearmanr(of_arm["effect"], of_arm["judge_score"]).statistic)
        half = norm.ppf((1 + level) / 2) * np.sqrt((1 + r * r / 2) / (n - 3))
        low, high = np.tanh(
            np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)) + half * np.array([-1, 1])
        )
        row: Row = {**pair.columns(), "arm": str(name), "measure": "judge_score"}
        row |= {"spearman": r, "spearman_low": float(low), "spearman_high": float(high)}
        yield row | {"n_features": n}

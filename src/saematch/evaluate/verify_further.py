"""Tables of the evaluation ``verify`` on injections, joint removals and predicted changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saematch.core.columns import Column
from saematch.core.tables import Row
from saematch.evaluate.effects import (
    NONE,
    different_events,
    mean_of,
    random_partners,
    read_events,
)
from saematch.evaluate.intervals import Values
from saematch.evaluate.interventions import INJECT, joint_edit
from saematch.evaluate.verify_columns import (
    CORRELATION,
    ERASED,
    JOINT_EFFECT,
    JOINT_OFF_RATE,
    ON_RATE,
    ON_RATE_RANDOM,
    REINFORCED,
    SINGLE_EFFECT,
    SINGLE_OFF_RATE,
    SLOPE,
    SPECIFICITY,
)
from saematch.evaluate.verify_tables import PairTables
from saematch.sae.recorders import pair_tensor_name

REINFORCES, ERASES = 1.1, 0.1
"""Ratios of measured to predicted change above and below which a change is reinforced or erased."""
N_CHANGES = 200
"""Largest number of events of a pair and arm in the table ``verify_changes``."""


@dataclass(frozen=True)
class FurtherTables:
    """Computes the tables of one pair that need other interventions or predictions."""

    tables: PairTables

    def injection(self) -> Iterator[Row]:
        """Yield the rows of ``verify_injection``, for the best partner of each feature."""
        tables = self.tables
        if not self._recorded(INJECT):
            return
        effects = tables.verified.effects(INJECT, ("silent", "total"))
        silent, total = effects.columns["silent"], effects.columns["total"]
        for name, ranked in tables.arms.items():
            partners = ranked[effects.features][:, :1]
            random = random_partners(partners, tables.verified.groups, tables.seed)
            row: Row = {**tables.pair.columns(), "arm": name}
            for chosen in (partners, random):
                entries = effects.entries_of(chosen)[:, 0]
                changed = entries != NONE
                before, after, change = (
                    np.where(changed, column[entries] if len(column) else 0, 0)
                    for column in (effects.before, effects.after, effects.change)
                )
                eligible = silent & (chosen[:, 0] != NONE) & (before == 0)
                on = (after > 0).astype(float)
                if chosen is random:
                    row[ON_RATE_RANDOM.name] = tables.mean(effects, on, eligible)[0].item()
                    continue
                share = np.divide(np.abs(change), total, out=np.zeros(len(total)), where=total > 0)
                row |= tables.row(ON_RATE, effects, on, eligible)
                row |= tables.row(SPECIFICITY, effects, share, eligible)
                n_events = int(eligible.sum())
                row |= {"n_events": n_events, "n_dropped": len(effects) - n_events}
            yield row

    def joint(self) -> Iterator[Row]:
        """Yield the rows of ``verify_joint``, for arms that give a target several sources."""
        tables = self.tables
        for name, match in tables.subject.matches.of(tables.pair).items():
            edit = joint_edit(match.hash)
            if not self._recorded(edit):
                continue
            columns = read_events(
                tables.verified.recording, tables.verified.twin, edit,
                ("before", "joint", "single", "n_sources"),
            )  # fmt: skip
            chosen = different_events(columns)
            columns = {column: values[chosen] for column, values in columns.items()}
            if not len(columns["text"]):
                continue
            row: Row = {**tables.pair.columns(), "arm": name}
            for kind, effect, off in (
                ("joint", JOINT_EFFECT, JOINT_OFF_RATE),
                ("single", SINGLE_EFFECT, SINGLE_OFF_RATE),
            ):
                D = np.clip(1 - columns[kind] / columns["before"], -1, 1).astype(float)
                is_off = (columns[kind] == 0).astype(float)
                for column, values in ((effect, D), (off, is_off)):
                    mean = mean_of(values, columns["text"], tables.weights)
                    row |= tables.replicates.row(column, mean)
            row["mean_sources"] = float(columns["n_sources"].mean())
            yield row | {"n_events": len(columns["text"])}

    def _recorded(self, edit: str) -> bool:
        """Return whether the edit was made."""
        verified = self.tables.verified
        return verified.recording.has(pair_tensor_name(verified.twin, f"{edit}|text"))

    def predicted(self, partners: np.ndarray) -> DirectChanges:
        """Return predicted and measured changes of the best partner, where it was active."""
        tables = self.tables
        effects = tables.removed
        best = partners[effects.features][:, :1]
        entries = effects.entries_of(best)[:, 0]
        sampled = effects.columns["by_feature"] & (entries != NONE)
        features, targets = effects.features[sampled], best[sampled, 0]
        source, target = (tables.subject.saes[key] for key in tables.pair)
        written = torch.einsum(
            "nd,nd->n",
            source.W_dec[torch.from_numpy(features)].double(),
            target.W_enc.T[torch.from_numpy(targets)].double(),
        )
        predicted = -effects.columns["value"][sampled] * written.numpy()
        return DirectChanges(
            predicted, effects.change[entries[sampled]], effects.columns["text"][sampled]
        )

    def direct(self) -> Iterator[Row]:
        """Yield the rows of ``verify_direct``: predicted against measured change."""
        tables = self.tables
        for name, partners in tables.arms.items():
            changes = self.predicted(partners)
            if not len(changes.texts):
                continue
            row: Row = {**tables.pair.columns(), "arm": name}
            for column, values in changes.metrics(tables.weights).items():
                row |= tables.replicates.row(column, values)
            yield row | {"n_events": len(changes.texts)}

    def changes(self) -> Iterator[Row]:
        """Yield the rows of ``verify_changes``: some of the events of ``verify_direct``."""
        tables = self.tables
        for name, partners in tables.arms.items():
            changes = self.predicted(partners)
            n = len(changes.texts)
            for number in np.linspace(0, n - 1, min(n, N_CHANGES)).astype(int).tolist():
                row: Row = {**tables.pair.columns(), "arm": name}
                row["predicted"] = float(changes.predicted[number])
                yield row | {"measured": float(changes.measured[number])}


class DirectChanges(NamedTuple):
    """Changes of the pre-activation of partners."""

    predicted: np.ndarray
    """``-f_i (d_i . w_enc_j)``: the change that the weights predict if no block reacts."""
    measured: np.ndarray
    texts: np.ndarray

    def metrics(self, weights: Tensor) -> dict[Column, Values]:
        """Return the metrics of ``verify_direct`` with their replicates."""
        p, m = self.predicted, self.measured
        n, pp, mm, pm, sum_p, sum_m = (
            weights @ torch.from_numpy(np.bincount(self.texts, values, weights.shape[1]))
            for values in (np.ones(len(p)), p * p, m * m, p * m, p, m)
        )
        covariance = pm - sum_p * sum_m / n
        spread = (pp - sum_p.square() / n) * (mm - sum_m.square() / n)
        reinforced = (m * np.sign(p) > REINFORCES * np.abs(p)).astype(float)
        erased = (m * np.sign(p) < ERASES * np.abs(p)).astype(float)
        return {
            SLOPE: pm / pp,
            CORRELATION: covariance / spread.sqrt(),
            REINFORCED: mean_of(reinforced, self.texts, weights),
            ERASED: mean_of(erased, self.texts, weights),
        }

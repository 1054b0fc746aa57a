"""Effects of interventions on matched target features, from the files of ``AblationRecorder``.

For a target feature with activation ``z`` before an intervention and ``z'`` after it, the effect is
``D = clip(1 - z' / z, -1, 1)`` if ``z > 0`` and 0 otherwise; it is off if ``z > 0`` and ``z' = 0``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.stats import rankdata

from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.evaluate.intervals import Values, Weights
from saematch.sae.recorders import Recording, pair_tensor_name

NONE = -1
"""Code for a missing partner."""
N_DECILES = 10

Numbers = Int64[np.ndarray, " n_events"]
PerEvent = Float64[np.ndarray, " n_events"]
Partners = Int64[np.ndarray, "n_events most"]
"""Partners of each event's source feature, the best first; ``NONE`` where there are no more."""


@dataclass(frozen=True)
class Effects:
    """The effects of one edit on one pair of SAEs."""

    columns: Mapping[str, np.ndarray]
    """Recorded values of each event: text, feature, value, by_feature, by_token, and others."""
    starts: Int64[np.ndarray, " n_events_plus_1"]
    """Number of the first entry of each event, and at the end the number of entries."""
    targets: Int64[np.ndarray, " n_entries"]
    """Target features, in order within each event."""
    before: Float64[np.ndarray, " n_entries"]
    after: Float64[np.ndarray, " n_entries"]
    change: Float64[np.ndarray, " n_entries"]
    """Change of the pre-activation."""
    n_target: int

    @classmethod
    def read(
        cls, recording: Recording, pair: Pair, edit: str, n_target: int, more: Sequence[str] = ()
    ) -> Effects:
        """Read the effects of an edit on all text sets; see ``different_events``.

        ``more`` has the names of further columns.
        """
        columns = read_events(recording, pair, edit, (*more, "n_entries", *_ENTRIES))
        entries = {name: columns.pop(name) for name in _ENTRIES}
        chosen = different_events(columns)
        counts = columns["n_entries"].astype(np.int64)
        new_number = np.full(len(counts), NONE)
        new_number[chosen] = np.arange(len(chosen))
        events = np.repeat(new_number, counts)
        order = np.lexsort((entries["target"], events))
        order = order[events[order] != NONE]
        targets, before, after, change = (entries[name][order] for name in _ENTRIES)
        starts = np.concatenate([[0], np.cumsum(counts[chosen])])
        return cls(
            {name: column[chosen] for name, column in columns.items() if name != "n_entries"},
            starts, targets.astype(np.int64), before.astype(float), after.astype(float),
            change.astype(float), n_target,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.starts) - 1

    def only(self, chosen: Bool[np.ndarray, " n_events"]) -> Effects:
        """Return some of the events."""
        counts = np.diff(self.starts)
        entries = np.repeat(chosen, counts)
        return Effects(
            {name: column[chosen] for name, column in self.columns.items()},
            np.concatenate([[0], np.cumsum(counts[chosen])]),
            self.targets[entries], self.before[entries], self.after[entries],
            self.change[entries], self.n_target,
        )  # fmt: skip

    @cached_property
    def features(self) -> Numbers:
        """Source feature of each event."""
        return self.columns["feature"].astype(np.int64)

    @cached_property
    def events(self) -> Int64[np.ndarray, " n_entries"]:
        """Event of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def D(self) -> Float64[np.ndarray, " n_entries"]:
        """Effect on each target feature that was active before."""
        return np.clip(1 - self.after / self.before, -1, 1)

    @cached_property
    def off(self) -> Float64[np.ndarray, " n_entries"]:
        """1 for each target feature that was active before and is not active after."""
        return (self.after == 0).astype(float)

    @cached_property
    def drop(self) -> Float64[np.ndarray, " n_entries"]:
        """Loss of activation of each target feature, at least 0."""
        return np.maximum(self.before - self.after, 0)

    def entries_of(self, partners: Partners) -> Int64[np.ndarray, "n_events most"]:
        """Return the number of the entry of each partner; ``NONE`` if it was not active."""
        if not len(self.targets):
            return np.full(partners.shape, NONE)
        keys = self.events * self.n_target + self.targets
        searched = np.arange(len(self))[:, None] * self.n_target + partners
        places = np.minimum(np.searchsorted(keys, searched), len(keys) - 1)
        return np.where((keys[places] == searched) & (partners != NONE), places, NONE)

    def of_partners(self, partners: Partners) -> Outcome:
        """Return the changes of the partners of each event's source feature."""
        entries = self.entries_of(partners)
        active = entries != NONE
        total = np.bincount(self.events, self.drop, len(self))[:, None]
        drop = np.where(active, _taken(self.drop, entries), 0)
        return Outcome(
            partners != NONE,
            active,
            np.where(active, _taken(self.D, entries), 0),
            np.where(active, _taken(self.off, entries), 0),
            np.divide(drop, total, out=np.zeros_like(drop), where=total > 0),
        )

    def of_best(self) -> Outcome:
        """Return the changes of the target with the largest effect in each event.

        An event in which no target lost activation has no best target, and effect 0.
        """
        best = np.full((len(self), 1), NONE)
        order = np.lexsort((-self.D, self.events))
        first = order[self.starts[:-1][np.diff(self.starts) > 0]]
        first = first[self.D[first] > 0]
        best[self.events[first], 0] = self.targets[first]
        return self.of_partners(best)


_ENTRIES = ("target", "before", "after", "change")


def _taken(values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the values of the entries; any value where there is no entry."""
    return values[entries] if len(values) else np.zeros(entries.shape)


def read_events(
    recording: Recording, pair: Pair, edit: str, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return recorded tensors of all events of an edit; ``text`` numbers the texts of all sets."""
    columns = ("text", "key", "position", "feature", "value", "by_feature", "by_token", *names)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    n_texts = 0
    stored = ["n_texts", *(pair_tensor_name(pair, f"{edit}|{name}") for name in columns)]
    for of_batch, *tensors in recording.batches(stored):
        for name, tensor in zip(columns, tensors, strict=True):
            parts[name].append((tensor + n_texts if name == "text" else tensor).numpy())
        n_texts += int(of_batch)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def different_events(columns: Mapping[str, np.ndarray]) -> Int64[np.ndarray, " n_different"]:
    """Return the numbers of the events, leaving out repetitions in equal texts.

    Their order depends neither on the batches nor on the order of the texts, so the random controls
    do not either.
    """
    rows = np.stack([columns[name] for name in ("key", "position", "feature")], axis=1)
    return np.unique(rows, axis=0, return_index=True)[1]


@dataclass(frozen=True)
class Outcome:
    """Changes of the partners of each event's source feature, the best partner first."""

    exists: Bool[np.ndarray, "n_events most"]
    active: Bool[np.ndarray, "n_events most"]
    D: Float64[np.ndarray, "n_events most"]
    off: Float64[np.ndarray, "n_events most"]
    mass: Float64[np.ndarray, "n_events most"]
    """Share of the activation that all target features lost."""

    def at(self, k: int) -> Scores:
        """Return the scores of the ``k`` best partners: the maximum of effects, the sum of mass."""
        exists = self.exists[:, :k]
        effect = np.where(exists, self.D[:, :k], -np.inf).max(axis=1, initial=-np.inf)
        return Scores(
            np.where(exists.any(axis=1), effect, 0),
            self.off[:, :k].max(axis=1, initial=0),
            self.mass[:, :k].sum(axis=1),
            self.active[:, :k].any(axis=1).astype(float),
        )


class Scores(NamedTuple):
    """Scores of each event."""

    effect: PerEvent
    off: PerEvent
    mass: PerEvent
    coverage: PerEvent
    """1 if a partner was active before."""


def ranked_partners(match: Match, most: int | None = None) -> Int64[np.ndarray, "n_source most"]:
    """Return the partners of each source feature by descending absolute weight.

    ``most`` is the largest number of partners of a feature; None for all.
    """
    rows = match.rows.numpy()
    order = np.lexsort((match.columns.numpy(), -np.abs(match.weights.numpy()), rows))
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    width = int(rank.max()) + 1 if len(rank) else 1
    width = width if most is None else min(width, most)
    order, rank = order[rank < width], rank[rank < width]
    partners = np.full((match.n_source, width), NONE, dtype=np.int64)
    partners[rows[order], rank] = match.columns.numpy()[order]
    return partners


def deciles(n_active: Int64[np.ndarray, " n"], live: Bool[np.ndarray, " n"]) -> np.ndarray:
    """Return the decile of activity of each live feature, from 0; ``N_DECILES`` for the others."""
    groups = np.full(len(n_active), N_DECILES)
    groups[live] = quantile_groups(n_active[live], N_DECILES)
    return groups


def quantile_groups(values: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the group of each value, from 0: groups of about equal size by rank."""
    if not len(values):
        return np.zeros(0, np.int64)
    return (rankdata(values, "ordinal") - 1).astype(np.int64) * n_groups // len(values)


def random_partners(
    partners: Partners, groups: Int64[np.ndarray, " n_target"], seed: int
) -> Partners:
    """Return a random target of the same group for each partner of each event.

    The targets of one event differ from each other if their group is large enough. A target may be
    the partner itself.
    """
    generator = np.random.default_rng(seed)
    chosen = np.full(partners.shape, NONE)
    for group in np.unique(groups):
        members = generator.permutation(np.flatnonzero(groups == group))
        of_group = (partners != NONE) & (groups[partners] == group)
        starts = generator.integers(len(members), size=(len(partners), 1))
        places = (starts + np.cumsum(of_group, axis=1)) % len(members)
        chosen[of_group] = members[places][of_group]
    return chosen


def mean_of(
    values: PerEvent, texts: Numbers, weights: Weights, where: np.ndarray | None = None
) -> Values:
    """Return the mean over events and its replicates; NaN without events."""
    counted = np.ones(len(values)) if where is None else where.astype(float)
    n_texts = weights.shape[1]
    sums = torch.from_numpy(np.bincount(texts, values * counted, n_texts))
    counts = torch.from_numpy(np.bincount(texts, counted, n_texts))
    return (weights @ sums) / (weights @ counts)

"""Sample events: tokens on which a feature is active.

Events are chosen by random priorities, which are hashes of the seed, text, position and feature.
The choice therefore depends neither on the order of the texts nor on the batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from saematch.core.pairs import SaeKey
from saematch.sae.recorders import Forward, Models, Recording, tensor_name
from saematch.sae.stand_in import quantiles
from saematch.texts.batch_work import Kept
from saematch.texts.priorities import FIRST_POSITION, hashes, text_keys
from saematch.texts.tokens import TokenBatch


@dataclass(frozen=True)
class Events:
    """Tokens on which features of one SAE are active, in the order of their priority."""

    texts: Int64[Tensor, " n"]
    """Key of each event's text (``text_keys``)."""
    positions: Int64[Tensor, " n"]
    features: Int64[Tensor, " n"]
    values: Float[Tensor, " n"]
    """Activation of the feature."""
    by_feature: Bool[Tensor, " n"]
    """Whether the event is in the sample by feature."""
    by_token: Bool[Tensor, " n"]
    """Whether the event is in the sample by token."""

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, chosen: Tensor) -> Events:
        """Return some of the events, by mask or by number."""
        return Events(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to(self, device: torch.device) -> Events:
        """Return the events on another device."""
        return Events(*(getattr(self, field.name).to(device) for field in fields(self)))

    def writing(self, values: Float[Tensor, " n_features"]) -> Events:
        """Return the events with a new value for each feature, without those whose value is NaN."""
        events = replace(self, values=values[self.features])
        return events.only(~events.values.isnan())

    def of_features(self, features: Bool[Tensor, " n_features"]) -> Events:
        """Return the events of some features."""
        return self.only(features[self.features])

    @cached_property
    def identity(self) -> str:
        """Hash of all events."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(getattr(self, field.name).contiguous().numpy().tobytes())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Sizes:
    """Numbers of events in the samples of one SAE."""

    by_feature: int
    """Largest number of events of a feature in the sample by feature."""
    by_token: int
    """Number of events in the sample by token, of all features together. On average, a feature has
    the same share of these events as of all active (token, feature) pairs."""
    seed: int


@dataclass(frozen=True)
class Sample:
    """Activity of the features of one SAE on texts, and a sample of events.

    Positions before ``FIRST_POSITION`` and special tokens do not count.
    """

    events: Events
    n_active: Int64[Tensor, " n_features"]
    """Number of tokens on which each feature is active."""
    total: Float64[Tensor, " n_features"]
    """Sum of each feature's activations."""
    n_tokens: int

    @property
    def mean(self) -> Float64[Tensor, " n_features"]:
        """Mean of each feature's positive activations; 0 for a feature that is never active."""
        return self.total / self.n_active.clamp(min=1)

    def median(self) -> Float[Tensor, " n_features"]:
        """Return the median activation in each feature's sampled events; NaN without events."""
        events = self.events.only(self.events.by_feature)
        return quantiles(events.features, events.values, len(self.n_active), 0.5)


@dataclass(frozen=True)
class EventRecorder:
    """Records a sample of events of each SAE, and how active the features are."""

    folder: Path
    saes: tuple[SaeKey, ...]
    sizes: Sizes
    models: Models
    runs_model: ClassVar[bool] = False

    def needs(self) -> dict[SaeKey, frozenset[SaeKey]]:
        """Return one item for each SAE."""
        return {key: frozenset({key}) for key in self.saes}

    def only(self, items: Collection[SaeKey]) -> EventRecorder:
        """Return a recorder of some of the SAEs."""
        return replace(self, saes=tuple(key for key in self.saes if key in items))

    def facts(self) -> list[Any]:
        """Return the SAEs and the sizes of the samples."""
        sizes = self.sizes
        return [list(self.saes), sizes.by_feature, sizes.by_token, sizes.seed]

    def record(self, forward: Forward) -> Kept:
        """Return the activity on one batch, and the events that may be in the sample."""
        text, position = torch.nonzero(forward.batch.counts, as_tuple=True)
        counted = position >= FIRST_POSITION
        keys = text_keys(forward.batch).to(text.device)
        kept: Kept = {}
        for key in self.saes:
            active = forward.active(key)
            tokens = active.tokens()
            chosen = counted[tokens]
            tokens, features, values = (
                part[chosen] for part in (tokens, active.features, active.values)
            )
            events = _sampled(
                keys[text[tokens]], position[tokens], features, values.float(), self.sizes
            )
            for field in fields(events):
                kept[tensor_name(key, field.name)] = getattr(events, field.name)
            n_active = torch.bincount(features, minlength=active.n_features)
            total = torch.bincount(features, values.double(), minlength=active.n_features)
            kept[tensor_name(key, "n_active")] = n_active
            kept[tensor_name(key, "total")] = total
            kept[tensor_name(key, "n_tokens")] = counted.sum()
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the activity on both halves of a batch, and the events of both."""
        names = [field.name for field in fields(Events)]
        return {
            name: torch.cat([part, second[name]])
            if name.rpartition("|")[2] in names
            else part + second[name]
            for name, part in first.items()
        }

    def sample(self, key: SaeKey, recording: Recording) -> Sample:
        """Return the activity and the sample of an SAE over all text sets."""
        of_events = [field.name for field in fields(Events)]
        names = [tensor_name(key, name) for name in (*of_events, "n_active", "total", "n_tokens")]
        events: Events | None = None
        n_active, total, n_tokens = torch.tensor(0), torch.tensor(0.0).double(), 0
        for *parts, active, of_batch, counted in recording.batches(names):
            batch = Events(*parts)
            if events is not None:
                merged = [
                    torch.cat([getattr(events, field.name), getattr(batch, field.name)])
                    for field in fields(Events)
                ]
                batch = Events(*merged)
            events = _sampled(
                batch.texts, batch.positions, batch.features, batch.values, self.sizes
            )
            n_active, total = n_active + active, total + of_batch
            n_tokens += int(counted)
        assert events is not None
        return Sample(events, n_active, total, n_tokens)


def _sampled(
    texts: Int64[Tensor, " n"],
    positions: Int64[Tensor, " n"],
    features: Int64[Tensor, " n"],
    values: Float[Tensor, " n"],
    sizes: Sizes,
) -> Events:
    """Return the events of lowest priority: some of each feature, and some of all together.

    Equal texts have equal events, of which one is kept.
    """
    priority = hashes(sizes.seed, texts, positions, features)
    order = torch.argsort(priority, stable=True)
    order = order[torch.argsort(features[order], stable=True)]
    sorted_features, sorted_priorities = features[order], priority[order]
    is_new = torch.ones_like(order, dtype=torch.bool)
    same = (sorted_features[1:] == sorted_features[:-1]) & (
        sorted_priorities[1:] == sorted_priorities[:-1]
    )
    is_new[1:] = ~same
    order = order[is_new]
    counts = torch.bincount(features[order])
    rank = torch.arange(len(order), device=order.device) - torch.repeat_interleave(
        counts.cumsum(0) - counts, counts
    )
    by_token_priority = hashes(sizes.seed + 1, *(p[order] for p in (texts, positions, features)))
    place = torch.empty_like(order)
    place[torch.argsort(by_token_priority, stable=True)] = torch.arange(
        len(order), device=order.device
    )
    by_feature, by_token = rank < sizes.by_feature, place < sizes.by_token
    kept = by_feature | by_token
    chosen = order[kept]
    return Events(
        texts[chosen], positions[chosen], features[chosen], values[chosen],
        by_feature[kept], by_token[kept],
    )  # fmt: skip


def directions(seed: int, events: Events, d_model: int) -> Float[Tensor, "n d_model"]:
    """Return a random unit vector for each event, uniform on the sphere."""
    n = len(events)
    parts = (events.texts, events.positions, events.features)
    wide = [part[:, None].expand(n, d_model).reshape(-1) for part in parts]
    columns = torch.arange(d_model, device=events.texts.device).repeat(n)
    uniform = [(hashes(seed + shift, *wide, columns).double() + 0.5) / 2**62 for shift in (2, 3)]
    normal = (-2 * uniform[0].log()).sqrt() * (2 * torch.pi * uniform[1]).cos()
    vectors = normal.view(n, d_model)
    return (vectors / vectors.norm(dim=1, keepdim=True)).float()


@dataclass(frozen=True)
class Tokens:
    """Tokens of texts at which a feature can be added."""

    texts: Int64[Tensor, " n"]
    positions: Int64[Tensor, " n"]

    @classmethod
    def of(cls, tokens: Mapping[str, Collection[TokenBatch]]) -> Tokens:
        """Return each text's tokens from ``FIRST_POSITION`` on, without special tokens.

        Equal texts count once.
        """
        texts, positions = [], []
        for batch in (batch for of_set in tokens.values() for batch in of_set):
            text, position = torch.nonzero(batch.counts, as_tuple=True)
            counted = position >= FIRST_POSITION
            texts.append(text_keys(batch)[text[counted]])
            positions.append(position[counted])
        rows = torch.stack([torch.cat(texts), torch.cat(positions)], dim=1).unique(dim=0)
        return cls(rows[:, 0], rows[:, 1])

    def at_random(self, features: Int64[Tensor, " n_features"], n_each: int, seed: int) -> Events:
        """Return ``n_each`` random tokens for each feature, as events with the value 0."""
        repeated = features.repeat_interleave(n_each)
        numbers = torch.arange(n_each).repeat(len(features))
        token = hashes(seed + 4, repeated, numbers) % max(len(self.texts), 1)
        chosen = torch.ones(len(repeated), dtype=torch.bool)
        return Events(
            self.texts[token], self.positions[token], repeated,
            torch.zeros(len(repeated)), chosen, ~chosen,
        )  # fmt: skip

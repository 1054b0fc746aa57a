"""Intervene on source features at single tokens, and record the changes of target features.

Every intervention adds a vector to ``resid_post`` of the source layer at one token. Everything else
stays unchanged, including the error of the source SAE. The blocks up to the target layer run, and
the target SAE encodes the same token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.events import Events, directions
from saematch.evaluate.interventions import (
    DIRECTION,
    EDITS,
    HALF,
    INJECT,
    NO_EFFECTS,
    NO_INJECTIONS,
    NO_JOINT,
    REMOVE,
    TO_MEAN,
    Interventions,
    joint_edit,
)
from saematch.lm.edits import EditRunner, Edits
from saematch.sae.activations import (
    ENCODE_CHUNK,
    Encoded,
    PaddedFeatures,
    SparseFeatures,
    encode_at,
    weighted_sum,
)
from saematch.sae.params import SaeParams
from saematch.sae.recorders import Forward, Models, pair_tensor_name
from saematch.texts.batch_work import Kept
from saematch.texts.priorities import text_keys

EDITS_AT_ONCE = 4096
"""Number of interventions in memory at a time."""


class _Rows(NamedTuple):
    """Events of a batch, and where their tokens are."""

    events: Events
    texts: Int64[Tensor, " n"]
    """Number of the text in the batch."""
    tokens: Int64[Tensor, " n"]
    """Number of the token among those that count."""

    def chunks(self) -> Iterator[_Rows]:
        """Yield a bounded number of events at a time."""
        for numbers in torch.arange(len(self.texts), device=self.texts.device).split(EDITS_AT_ONCE):
            yield _Rows(self.events.only(numbers), self.texts[numbers], self.tokens[numbers])


@dataclass(frozen=True)
class AblationRecorder:
    """Records the effects of interventions on the target features that were active before.

    For each pair and edit: the events, and for each target feature that was active before, its
    activation ``before`` and ``after``, and the ``change`` of its pre-activation.
    """

    folder: Path
    plans: Mapping[Pair, Interventions]
    seed: int
    models: Models = field(default_factory=Models)
    runs_model: ClassVar[bool] = True

    def needs(self) -> dict[Pair, frozenset[SaeKey]]:
        """Return both SAEs of each pair."""
        return {pair: frozenset(pair) for pair in self.plans}

    def only(self, items: Collection[Pair]) -> AblationRecorder:
        """Return a recorder of some of the pairs."""
        return replace(self, plans={p: plan for p, plan in self.plans.items() if p in items})

    def facts(self) -> list[Any]:
        """Return the interventions of each pair."""
        return [[list(pair), plan.identity] for pair, plan in self.plans.items()] + [self.seed]

    def record(self, forward: Forward) -> Kept:
        """Record one batch."""
        kept: Kept = {"n_texts": torch.tensor(len(forward.batch.ids))}
        keys = text_keys(forward.batch)
        runner = EditRunner(forward.lm, forward.batch.ids, forward.hidden)
        for pair, plan in self.plans.items():
            work = _PairWork(forward, runner, pair, keys)
            tensors = work.removals(plan, self.seed)
            if plan.injections is not None:
                tensors |= work.injections(plan.injections)
            for key, match in plan.joint.items():
                assert plan.targets is not None
                tensors |= work.joint(plan.targets, key, match)
            kept |= {pair_tensor_name(pair, name): tensor for name, tensor in tensors.items()}
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the effects in both halves of a batch."""
        kept = {}
        for name, part in first.items():
            other = second[name]
            if name == "n_texts":
                kept[name] = part + other
            elif name.endswith("|text"):
                kept[name] = torch.cat([part, other + n_texts])
            else:
                kept[name] = torch.cat([part, other])
        return kept


@dataclass(frozen=True)
class _PairWork:
    """Interventions on one pair in one batch."""

    forward: Forward
    runner: EditRunner
    pair: Pair
    keys: Int64[Tensor, " batch"]
    """Key of each text of the batch."""

    @property
    def source(self) -> SaeParams:
        return self.forward.saes[self.pair.source]

    @property
    def target(self) -> SaeParams:
        return self.forward.saes[self.pair.target]

    def rows(self, events: Events) -> _Rows:
        """Return the events in the texts of this batch; equal texts have them once."""
        sorted_keys, order = self.keys.sort(stable=True)
        place = torch.searchsorted(sorted_keys, events.texts).clamp(max=len(order) - 1)
        here = sorted_keys[place] == events.texts
        device = self.forward.batch.ids.device
        chosen = events.only(here).to(device)
        texts = order[place[here]].to(device)
        counts = self.forward.batch.counts
        numbers = counts.flatten().cumsum(0).view_as(counts) - 1
        return _Rows(chosen, texts, numbers[texts, chosen.positions])

    def after(self, rows: _Rows, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Return the target's hidden states after the vectors are added to the source's."""
        source, target = self.pair.source.layer, self.pair.target.layer
        positions = rows.events.positions
        states = self.forward.hidden[source][rows.texts, positions].float() + vectors
        return self.runner.run(source, target, Edits(rows.texts, positions, states)).float()

    def encode_at(
        self, x: Float[Tensor, "n d_model"], features: Int64[Tensor, "n most"]
    ) -> Encoded:
        """Return some target features of hidden states, in full precision as before the edit."""
        with torch.autocast(x.device.type, enabled=False):
            return encode_at(self.target, x, features)

    def removals(self, plan: Interventions, seed: int) -> Kept:
        """Return the effects of all edits of the removed features."""
        kept: dict[str, list[Tensor]] = {}
        for rows in self.rows(plan.removals).chunks():
            before = self.forward.active(self.pair.target).padded(rows.tokens)
            for edit, chosen, vectors in self._edits(rows, plan, seed):
                part = _Rows(rows.events.only(chosen), rows.texts[chosen], rows.tokens[chosen])
                active = PaddedFeatures(*(tensor[chosen] for tensor in before))
                effects = self._effects(part, active, vectors)
                for name, tensor in effects.items():
                    kept.setdefault(f"{edit}|{name}", []).append(tensor)
        edits = EDITS if plan.means is not None else (REMOVE,)
        return {name: t for edit in edits for name, t in _joined(kept, edit, NO_EFFECTS).items()}

    def _edits(
        self, rows: _Rows, plan: Interventions, seed: int
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each edit, the numbers of the events that it applies to, and its vectors."""
        events = rows.events
        d = self.source.W_dec[events.features].float()
        contributions = events.values[:, None] * d
        numbers = torch.arange(len(events), device=rows.texts.device)
        yield REMOVE, numbers, -contributions
        if plan.means is None:
            return
        sampled = numbers[events.by_feature]
        yield HALF, sampled, -contributions[sampled] / 2
        excess = events.values - plan.means.to(events.values)[events.features]
        above = numbers[events.by_feature & (excess > 0)]
        yield TO_MEAN, above, -excess[above, None] * d[above]
        random = directions(seed, events.only(sampled), self.source.d_model)
        yield DIRECTION, sampled, -contributions[sampled].norm(dim=1, keepdim=True) * random

    def _effects(self, rows: _Rows, active: PaddedFeatures, vectors: Tensor) -> Kept:
        """Return the events, and the changes of the target features that were active before."""
        x = self.after(rows, vectors)
        pre, values = self.encode_at(x, active.features)
        entries = active.is_active
        return {
            **_event_tensors(rows),
            "n_entries": entries.sum(dim=1),
            "target": active.features[entries].int(),
            "before": active.values[entries].float(),
            "after": values[entries],
            "change": pre[entries] - active.values[entries],
        }

    def injections(self, events: Events) -> Kept:
        """Return the effects of writing features at tokens where they are silent.

        All target features that are active before or after are recorded, and for each event whether
        the source feature was silent, and the sum of all changes of activations.
        """
        kept: dict[str, list[Tensor]] = {}
        active = self.forward.active(self.pair.source)
        of_target = self.forward.active(self.pair.target)
        for rows in self.rows(events).chunks():
            own = active.padded(rows.tokens)
            features = rows.events.features
            silent = ~(own.is_active & (own.features == features[:, None])).any(dim=1)
            vectors = rows.events.values[:, None] * self.source.W_dec[features].float()
            x = self.after(rows, vectors)
            for numbers in torch.arange(len(x), device=x.device).split(
                max(1, ENCODE_CHUNK // self.target.n_features)
            ):
                with torch.autocast(x.device.type, enabled=False):
                    after = self.target.encode(x[numbers])
                before = torch.zeros_like(after)
                padded = of_target.padded(rows.tokens[numbers])
                row, place = torch.nonzero(padded.is_active, as_tuple=True)
                before[row, padded.features[row, place]] = padded.values[row, place].float()
                row, feature = torch.nonzero((before > 0) | (after > 0), as_tuple=True)
                part = _Rows(rows.events.only(numbers), rows.texts[numbers], rows.tokens[numbers])
                effects = {
                    **_event_tensors(part),
                    "silent": silent[numbers],
                    "total": (after - before).abs().sum(dim=1),
                    "n_entries": torch.bincount(row, minlength=len(numbers)),
                    "target": feature.int(),
                    "before": before[row, feature],
                    "after": after[row, feature],
                    "change": (after - before)[row, feature],
                }
                for name, tensor in effects.items():
                    kept.setdefault(f"{INJECT}|{name}", []).append(tensor)
        return _joined(kept, INJECT, NO_INJECTIONS)

    def joint(self, events: Events, key: str, match: Match) -> Kept:
        """Return the effects on target features of removing their active sources.

        One intervention removes all of them (``joint``), the other only the source with the largest
        absolute weight (``single``). Events without an active source are left out.
        """
        kept: dict[str, list[Tensor]] = {}
        entry_keys = match.rows * match.n_target + match.columns
        device = self.forward.batch.ids.device
        entry_keys, weights = entry_keys.to(device), match.weights.abs().to(device)
        active = self.forward.active(self.pair.source)
        for rows in self.rows(events).chunks():
            own = active.padded(rows.tokens)
            searched = own.features * match.n_target + rows.events.features[:, None]
            place = torch.searchsorted(entry_keys, searched).clamp(max=max(len(entry_keys) - 1, 0))
            is_source = own.is_active & (entry_keys[place] == searched)
            chosen = torch.nonzero(is_source.any(dim=1)).flatten()
            rows = _Rows(rows.events.only(chosen), rows.texts[chosen], rows.tokens[chosen])
            weight = torch.where(is_source, weights[place], -1.0)[chosen]
            is_source, features = is_source[chosen], own.features[chosen]
            values = own.values[chosen].float()
            best = weight.argmax(dim=1, keepdim=True) if len(chosen) else weight.long()
            W_dec = self.source.W_dec.float()
            amounts = {
                "joint": torch.where(is_source, values, 0.0),
                "single": torch.zeros_like(values).scatter_(1, best, values.gather(1, best)),
            }
            effects = {**_event_tensors(rows), "before": rows.events.values.float()}
            for name, amount in amounts.items():
                removed = SparseFeatures(
                    torch.arange(len(chosen), device=device) * amount.shape[1],
                    features.flatten(), -amount.flatten(), match.n_source,
                )  # fmt: skip
                x = self.after(rows, weighted_sum(removed, W_dec))
                effects[name] = self.encode_at(x, rows.events.features[:, None]).values[:, 0]
            effects["n_sources"] = is_source.sum(dim=1)
            for name, tensor in effects.items():
                kept.setdefault(f"{joint_edit(key)}|{name}", []).append(tensor)
        return _joined(kept, joint_edit(key), NO_JOINT)


def _joined(parts: Mapping[str, list[Tensor]], edit: str, empty: Kept) -> Kept:
    """Return the tensors of an edit on the CPU, each joined over the chunks of events."""
    names = {f"{edit}|{name}": tensor for name, tensor in empty.items()}
    return {name: torch.cat(parts[name]).cpu() if name in parts else names[name] for name in names}


def _event_tensors(rows: _Rows) -> Kept:
    events = rows.events
    return {
        "text": rows.texts,
        "key": events.texts,
        "position": events.positions.int(),
        "feature": events.features,
        "value": events.values.float(),
        "by_feature": events.by_feature,
        "by_token": events.by_token,
    }

"""Interventions on source features, and the names and types of their recorded effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.match import Match
from saematch.evaluate.events import Events
from saematch.texts.batch_work import Kept

REMOVE, HALF, TO_MEAN, DIRECTION = "remove", "half", "to mean", "random direction"
EDITS = (REMOVE, HALF, TO_MEAN, DIRECTION)
"""Edits of an active feature with contribution ``f d``: subtract all of it, one half of it, or what
exceeds the feature's mean activation; or subtract a random vector of the same norm."""
INJECT = "inject"


@dataclass(frozen=True)
class Interventions:
    """Interventions on one pair of SAEs."""

    removals: Events
    """Events of source features, which are removed."""
    means: Float[Tensor, " n_source"] | None = None
    """Mean activation of each source feature; None to do no edit but ``remove``."""
    injections: Events | None = None
    """Tokens at which source features are written; ``values`` are the activations to write."""
    targets: Events | None = None
    """Events of target features, of which all sources are removed together."""
    joint: Mapping[str, Match] = field(default_factory=dict)
    """Matches that define the sources of a target, by their hash."""

    @property
    def identity(self) -> list[Any]:
        """Everything that determines the interventions, as JSON values."""
        means = None if self.means is None else self.means.tolist()
        events = (self.removals, self.injections, self.targets)
        identities = [None if part is None else part.identity for part in events]
        return [*identities, means, list(self.joint)]


def joint_edit(key: str) -> str:
    """Return the name of the edit that removes all sources of a target by a match's hash."""
    return f"joint {key}"


def _empty(**kinds: torch.dtype) -> Kept:
    """Return tensors without entries."""
    return {name: torch.zeros(0, dtype=kind) for name, kind in kinds.items()}


_NO_EVENTS = _empty(
    text=torch.int64, key=torch.int64, position=torch.int32, feature=torch.int64,
    value=torch.float32, by_feature=torch.bool, by_token=torch.bool,
)  # fmt: skip
NO_EFFECTS = _NO_EVENTS | _empty(
    n_entries=torch.int64, target=torch.int32, before=torch.float32, after=torch.float32,
    change=torch.float32,
)  # fmt: skip
"""Tensors of an edit without events."""
NO_INJECTIONS = _NO_EVENTS | _empty(
    silent=torch.bool, total=torch.float32, n_entries=torch.int64, target=torch.int32,
    before=torch.float32, after=torch.float32, change=torch.float32,
)  # fmt: skip
"""Tensors of injections without events."""
NO_JOINT = _NO_EVENTS | _empty(
    before=torch.float32, joint=torch.float32, single=torch.float32, n_sources=torch.int64
)  # fmt: skip
"""Tensors of joint removals without events."""

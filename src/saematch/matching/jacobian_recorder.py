"""Record sums of Jacobians at sampled tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.pairs import DEFAULT, SaeKey
from saematch.lm.edits import EditRunner
from saematch.lm.jacobian import jacobian_sums
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.recorders import Forward
from saematch.sae.suites import SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.priorities import FIRST_POSITION, hashes, text_keys
from saematch.texts.tokens import TokenBatch

UNSAMPLED = 2**62
"""Priority of tokens that are not sampled: the first positions and those that do not count."""


@dataclass(frozen=True)
class JacobianRecorder:
    """Records the sums of the Jacobians from one layer to another, at tokens of some priorities.

    The recorded sums depend on no SAE, so the recorder needs a ``probe`` in place of one.
    """

    folder: Path
    source: int
    target: int
    first: int
    """Smallest priority of the tokens."""
    end: int
    """The priorities of the tokens are below this number."""
    runs_model: ClassVar[bool] = True

    def needs(self) -> dict[int, frozenset[SaeKey]]:
        """Return one item, which needs the hidden states of the source layer."""
        return {self.source: frozenset({probe_key(self.source)})}

    def only(self, items: Collection[int]) -> JacobianRecorder:
        """Return the recorder, which has only one item."""
        return self

    def facts(self) -> list[Any]:
        """Return both layers and the range of priorities."""
        return [self.source, self.target, self.first, self.end]

    def record(self, forward: Forward) -> Kept:
        """Return the sums over a batch: ``J``, ``squares`` and the number ``n`` of tokens."""
        order = priorities(forward.batch)
        chosen = (order >= self.first) & (order < self.end)
        texts, positions = torch.nonzero(chosen.to(forward.batch.ids.device), as_tuple=True)
        with torch.inference_mode(False), torch.enable_grad():  # which cannot use its tensors
            hidden = {self.source: forward.hidden[self.source].clone()}
            runner = EditRunner(forward.lm, forward.batch.ids.clone(), hidden)
            sums = jacobian_sums(runner, self.source, self.target, texts.clone(), positions.clone())
        return {
            "J": sums.J.float().cpu(),
            "squares": torch.tensor(sums.squares, dtype=torch.float64),
            "n": torch.tensor(len(texts)),
        }

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the sums over both halves of a batch."""
        return {name: tensor + second[name] for name, tensor in first.items()}


def priorities(batch: TokenBatch) -> Int64[Tensor, "batch seq"]:
    """Return the priority of each token; ``UNSAMPLED`` for tokens that are not sampled."""
    positions = torch.arange(batch.ids.shape[1]).expand(batch.ids.shape)
    keys = text_keys(batch)[:, None].expand(batch.ids.shape)
    sampled = batch.counts.cpu() & (positions >= FIRST_POSITION)
    of_tokens = hashes(0, keys.flatten(), positions.flatten()).view(batch.ids.shape)
    return torch.where(sampled, of_tokens, UNSAMPLED)


def probe_key(layer: int) -> SaeKey:
    """Return the key of a layer's probe."""
    return SaeKey(DEFAULT, layer)


def probes(layers: Collection[int], d_model: int) -> SaeShelf:
    """Return SAEs of one feature in place of the SAEs of a pass, which reads their layers."""
    zeros = torch.zeros(d_model, 1)
    return SaeShelf.of(
        {
            probe_key(layer): SaeParams(
                zeros, torch.zeros(1), zeros.T, torch.zeros(d_model), None, "relu",
                SaeOrigin(layer, "hidden states", str(layer)),
            )
            for layer in layers
        }
    )  # fmt: skip

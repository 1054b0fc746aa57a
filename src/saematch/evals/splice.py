"""Skip layers: replace a hidden state by what the features of an earlier layer say it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.data.tokens import TokenBatch
from saematch.evals.activations import SparseFeatures, carry, decode, encode
from saematch.evals.stats import Shapes, Totals
from saematch.lm.hooks import LanguageModel
from saematch.matching.arm import DECODINGS
from saematch.matching.match import Match
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeParams

NO_ARM = "none"
"""Stands in the arm's place for a strategy that uses no match."""
MATCHLESS = ("reconstruct_previous", "reconstruct_current", "drop")
"""Strategies that use no match (paper, section 5.5): SAE_t's reconstruction of ``x_t``,
SAE_{t+1}'s of the true ``x_{t+1}``, and ``x_t`` itself."""


@dataclass(frozen=True)
class Cell:
    """One way to change the model at a layer pair."""

    arm: str
    strategy: str


@dataclass(frozen=True)
class SplicePlan:
    """Everything that one pass over the texts evaluates."""

    pairs: tuple[tuple[int, int], ...]
    """Layers ``(t, u)``: blocks ``t+1`` to ``u`` are skipped and the output of ``u`` replaced, at
    every position that counts; at BOS it keeps its true value."""
    saes: dict[int, SaeParams]
    matches: dict[str, tuple[Match, ...]]
    """By arm, one match a pair."""
    cells: tuple[Cell, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose hidden states are read."""
        return tuple(sorted({layer for pair in self.pairs for layer in pair}))

    @property
    def shapes(self) -> Shapes:
        """Sizes of the sums."""
        return Shapes(
            layers=self.layers,
            pairs=self.pairs,
            n_arms=len(self.matches),
            n_cells=len(self.cells),
            d_model=self.saes[self.layers[0]].d_model,
            n_features=tuple(self.saes[layer].n_features for layer in self.layers),
        )

    def to(self, device: torch.device) -> SplicePlan:
        """Return the plan with its SAEs on another device."""
        saes = {layer: sae.to(device) for layer, sae in self.saes.items()}
        return SplicePlan(self.pairs, saes, self.matches, self.cells)


@torch.inference_mode()
def evaluate_batch(plan: SplicePlan, lm: LanguageModel, batch: TokenBatch, totals: Totals) -> None:
    """Add one batch to the totals: one original forward serves every arm, strategy and pair."""
    hidden, final = lm.capture(batch.ids, plan.layers)
    targets = batch.ids.roll(-1, dims=1)[batch.predicts]
    x = {layer: hidden[layer][batch.counts].float() for layer in plan.layers}
    totals.update_original(list(x.values()), lm.token_losses(final[batch.predicts], targets))
    with torch.autocast(batch.ids.device.type, enabled=False):
        active = {layer: encode(plan.saes[layer], x[layer]) for layer in plan.layers}
        _count_features(plan, active, totals)
    for place, (_, later) in enumerate(plan.pairs):
        replacements = _replacements(plan, place, x, active)
        for number, replacement in enumerate(replacements):
            spliced = hidden[later].clone()
            spliced[batch.counts] = replacement.to(spliced.dtype)
            changed = lm.continue_from(later, spliced, batch.ids)
            losses = lm.token_losses(changed[batch.predicts], targets)
            totals.update_cell(place, number, replacement - x[later], losses)


def _replacements(
    plan: SplicePlan,
    place: int,
    x: dict[int, Float[Tensor, "n_tokens d_model"]],
    active: dict[int, SparseFeatures],
) -> Iterator[Float[Tensor, "n_tokens d_model"]]:
    """Yield what each cell of the plan puts in place of the later layer's hidden states."""
    earlier, later = plan.pairs[place]
    sae_from, sae_to = plan.saes[earlier], plan.saes[later]
    for cell in plan.cells:
        with torch.autocast(x[earlier].device.type, enabled=False):
            if cell.strategy in DECODINGS:
                by = DECODINGS[cell.strategy]
                scales = fold_scale(sae_from, by), fold_scale(sae_to, by)
                match = plan.matches[cell.arm][place]
                yield decode(sae_to, carry(active[earlier], match, *scales))
            elif cell.strategy == "reconstruct_previous":
                yield decode(sae_from, active[earlier])
            elif cell.strategy == "reconstruct_current":
                yield decode(sae_to, active[later])
            else:
                assert cell.strategy == "drop", cell
                yield x[earlier]


def _count_features(plan: SplicePlan, active: dict[int, SparseFeatures], totals: Totals) -> None:
    """Count activations of features, and of features together with their partners."""
    dense = {layer: features.dense() for layer, features in active.items()}
    for place, layer in enumerate(plan.layers):
        totals.update_features(place, dense[layer])
    for place, (earlier, later) in enumerate(plan.pairs):
        entries = active[earlier]
        tokens = entries.tokens()
        for number, matches in enumerate(plan.matches.values()):
            partners = matches[place].partners().to(tokens.device)[entries.features]
            hit = dense[later][tokens, partners.clamp(min=0)] & (partners >= 0)
            both = torch.bincount(entries.features[hit], minlength=entries.n_features)
            totals.update_pair(place, number, both)

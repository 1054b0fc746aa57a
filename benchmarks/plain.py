"""Peer of the row ``skip_layers``: a straightforward program with forward hooks.

For each cell the whole model runs over every batch. A forward hook at the source's block encodes,
and a hook at the target's block replaces the state with the decoded one. Features are dense, and
means are computed at the end over all stored values. The numbers must be equal to saematch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.evaluate.measures import Cell
from saematch.lm.hooks import LanguageModel
from saematch.matching.arm import DECODINGS
from saematch.sae.folding import fold
from saematch.sae.params import SaeParams
from saematch.texts.tokens import TokenBatch


@torch.inference_mode()
def plain_skip_layers(
    saes: Mapping[SaeKey, SaeParams],
    cells: Mapping[Cell, Match | None],
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
) -> dict[Cell, tuple[float, float]]:
    """Return the explained variance and the change in loss of each cell.

    ``cells`` has the match of each cell, or None for a strategy without a match.
    """
    clean = [_losses(lm, batch) for batch in batches]
    original = torch.cat(clean).mean().item()
    results = {}
    for cell, match in cells.items():
        states, errors, losses = [], [], []
        for batch in batches:
            x, x_hat, loss = _changed(saes, cell, match, lm, batch)
            states.append(x)
            errors.append(x_hat - x)
            losses.append(loss)
        x, error = torch.cat(states).double(), torch.cat(errors).double()
        unexplained = error.var(dim=0, correction=0).sum() / x.var(dim=0, correction=0).sum()
        results[cell] = (1 - unexplained.item(), torch.cat(losses).mean().item() - original)
    return results


def _changed(
    saes: Mapping[SaeKey, SaeParams],
    cell: Cell,
    match: Match | None,
    lm: LanguageModel,
    batch: TokenBatch,
) -> tuple[Tensor, Tensor, Tensor]:
    pair = cell.pair
    source, target = saes[pair.source], saes[pair.target]
    seen: dict[str, Tensor] = {}

    def read(_module: object, _args: object, output: Tensor) -> None:
        seen["x_t"] = output[batch.counts]

    def replace(_module: object, _args: object, output: Tensor) -> Tensor:
        x_t, seen["x"] = seen["x_t"], output[batch.counts]
        if cell.strategy == "drop":
            x_hat = x_t
        elif cell.strategy == "reconstruct_previous":
            x_hat = source.reconstruct(x_t)
        elif cell.strategy == "reconstruct_current":
            x_hat = target.reconstruct(seen["x"])
        else:
            by = DECODINGS[cell.strategy]
            assert match is not None
            x_hat = fold(target, by).decode(_permuted(fold(source, by).encode(x_t), match))
        seen["x_hat"] = x_hat
        changed = output.clone()
        changed[batch.counts] = x_hat
        return changed

    hooks = [
        lm.blocks[pair.source.layer].register_forward_hook(read),
        lm.blocks[pair.target.layer].register_forward_hook(replace),
    ]
    try:
        losses = _losses(lm, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["x"], seen["x_hat"], losses


def _permuted(features: Tensor, match: Match) -> Tensor:
    out = features.new_zeros(*features.shape[:-1], match.n_target)
    return out.index_add(-1, match.columns.to(out.device), features[..., match.rows])


def _losses(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    logits = lm.model(input_ids=batch.ids).logits[batch.predicts]
    return cross_entropy(logits, batch.ids.roll(-1, dims=1)[batch.predicts], reduction="none")

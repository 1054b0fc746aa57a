"""Skip layers: replace a hidden state by a prediction from the features of an earlier layer."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.counting import by_text, labelled
from saematch.evaluate.increment import UNITS, read_free_vectors
from saematch.matching.arm import DECODINGS, INCREMENT
from saematch.matching.transport import transport
from saematch.sae.activations import decode, weighted_sum
from saematch.sae.folding import fold_scale
from saematch.sae.recorders import Forward, Models
from saematch.texts.batch_work import Kept

INCREMENT_FREE = "increment_free"
"""Strategy that adds a fitted vector for each source feature to the copied hidden state."""
MATCHLESS = ("reconstruct_previous", "reconstruct_current", "drop", INCREMENT_FREE)
"""Strategies that use no match. The first three are from the paper (section 5.5): SAE_t's
reconstruction of ``x_t``, SAE_{t+1}'s of the true ``x_{t+1}``, and ``x_t`` itself. The last is the
ceiling of the strategy ``increment``."""


class Splice(NamedTuple):
    """One change of the model: skip blocks ``t+1`` to ``u`` and replace the output of ``u``.

    At BOS and other special tokens the hidden state keeps its true value. Equal splices are the
    same change, which is evaluated once even if several arms and suites request it.
    """

    strategy: str
    pair: Pair
    match: str = ""
    """Hash of the match; empty for a strategy without a match."""
    quantile: float | None = None
    """Share of features, those with the smallest squared error, that are decoded by the target; the
    others keep their own decoder vectors (paper, eq. 6). None: the target decodes all features with
    a partner, and the others are lost."""

    @property
    def name(self) -> str:
        """Name of the splice in names of tensors."""
        return "|".join(
            map(
                str,
                (self.strategy, *self.pair.source, *self.pair.target, self.match, self.quantile),
            )
        )


class Job(NamedTuple):
    """SAEs and match that a splice needs."""

    ends: Pair
    """SAEs of source and target, with the keys that recordings use."""
    moved: Match | None
    """Match of the features that the target decodes; None for a strategy without a match. For
    ``increment``, its weights contain the gains."""
    vectors: Path | None = None
    """File of the vectors of ``increment_free``; None for other strategies."""


@dataclass(frozen=True)
class SpliceRecorder:
    """Records, by text, the loss and the error of the hidden state under each splice.

    For each splice: ``loss`` (sum over predicted tokens), ``error_sum`` and ``error_square`` (of
    the replaced minus the true hidden state). For each target layer: ``x_sum`` and ``x_square`` of
    the true hidden states. For each language model: numbers of tokens, and ``loss_original``.
    """

    folder: Path
    splices: Mapping[Splice, Job]
    models: Models = field(default_factory=Models)
    runs_model: ClassVar[bool] = True

    def needs(self) -> dict[Hashable, frozenset[SaeKey]]:
        """Return the SAEs of each splice."""
        return {splice: frozenset(job.ends) for splice, job in self.splices.items()}

    def only(self, items: Collection[Hashable]) -> SpliceRecorder:
        """Return a recorder of some of the splices."""
        return replace(self, splices={s: job for s, job in self.splices.items() if s in items})

    def facts(self) -> list[Any]:
        """Return the splices, and the hashes of the matches and of the fits that they use."""
        moved = [None if job.moved is None else job.moved.hash for job in self.splices.values()]
        fits = [job.vectors and job.vectors.stem for job in self.splices.values()]
        return [list(self.splices), moved, fits]

    def record(self, forward: Forward) -> Kept:
        """Evaluate every splice on one batch. The first axis of each tensor is the text."""
        lm, batch, label = forward.lm, forward.batch, forward.model
        assert forward.final is not None
        counted, predicting = by_text(batch.counts), by_text(batch.predicts)
        targets = batch.ids.roll(-1, dims=1)[batch.predicts]
        losses = lm.token_losses(forward.final[batch.predicts], targets)
        sums = {
            labelled("loss_original", label): predicting @ losses.double(),
            labelled("n_tokens", label): batch.counts.sum(dim=1),
            labelled("n_special", label): batch.n_special,
            labelled("n_targets", label): batch.predicts.sum(dim=1),
        }
        x = forward.states[label]
        for layer in sorted({job.ends.target.layer for job in self.splices.values()}):
            states = x[layer].double()
            sums[labelled(f"x_sum|{layer}", label)] = counted @ states
            sums[labelled(f"x_square|{layer}", label)] = counted @ states.square().sum(dim=1)
        for splice, job in self.splices.items():
            with torch.autocast(batch.ids.device.type, enabled=False):
                replacement = _replacement(forward, splice, job)
            target = job.ends.target.layer
            spliced = forward.hidden[target].clone()
            spliced[batch.counts] = replacement.to(spliced.dtype)
            changed = lm.continue_from(target, spliced, batch.ids)
            losses = lm.token_losses(changed[batch.predicts], targets)
            error = (replacement - x[target]).double()
            sums[f"loss|{splice.name}"] = predicting @ losses.double()
            sums[f"error_sum|{splice.name}"] = counted @ error
            sums[f"error_square|{splice.name}"] = counted @ error.square().sum(dim=1)
        return sums

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the sums of both halves, one text after the other."""
        return {name: torch.cat([sums, second[name]]) for name, sums in first.items()}


def _replacement(forward: Forward, splice: Splice, job: Job) -> Float[Tensor, "n_tokens d_model"]:
    """Return the hidden states that replace the target's."""
    source_key, target_key = job.ends
    if splice.strategy == "drop":
        return forward.x(source_key)
    source, active = forward.saes[source_key], forward.active(source_key)
    if splice.strategy == "reconstruct":
        return decode(source, active)
    if job.vectors is not None:
        vectors = read_free_vectors(job.vectors).to(active.values.device)
        return forward.x(source_key) + weighted_sum(active, vectors)
    assert job.moved is not None
    target, by = forward.saes[target_key], DECODINGS.get(splice.strategy, UNITS)
    scales = fold_scale(source, by), fold_scale(target, by)
    transported = transport(active, job.moved, *scales)
    if splice.strategy == INCREMENT:
        return forward.x(source_key) + weighted_sum(transported, target.W_dec)
    replaced = decode(target, transported)
    if splice.quantile is None:
        return replaced
    unmoved = torch.ones(source.n_features, dtype=torch.bool, device=replaced.device)
    unmoved[job.moved.rows.to(unmoved.device)] = False
    return replaced + decode(source, active.keep(unmoved)) - source.b_dec

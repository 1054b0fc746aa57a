"""What SAEs without thresholds are folded by: decoder norms, or activations on some tokens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.activations import encode
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeParams
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec

log = logging.getLogger(__name__)
MOST = 0.5
"""Share of the squared norm of folded features above which encoder biases decide the match."""


@spec("stand_in")
class NoStandIn:
    """Spec: SAEs that cannot be folded by thresholds are refused."""


@spec("stand_in")
class DecoderNorm:
    """Spec: they are folded by the norms of their decoder vectors, which all become 1."""


@spec("stand_in")
class ActivationQuantile:
    """Spec: they are folded by a quantile of each feature's positive activations."""

    quantile: float
    """A JumpReLU threshold is what all positive activations lie above: near quantile 0."""
    n_tokens: int
    """Tokens of the run's texts to look at, about; every text set gives as many."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1 or self.n_tokens < 1:
            raise InputError(
                f"stand_in.quantile={self.quantile} must lie between 0 and 1, and "
                f"stand_in.n_tokens={self.n_tokens} be at least 1"
            )


StandIn = NoStandIn | DecoderNorm | ActivationQuantile


def by_decoder_norm(sae: SaeParams) -> SaeParams:
    """Return the SAE with its decoder norms in place of missing thresholds."""
    if not lacks_thresholds(sae):
        return sae
    return _stood_in(sae, fold_scale(sae, "decoder_norm"), "decoder norm")


def lacks_thresholds(sae: SaeParams) -> bool:
    """Whether folding by thresholds is impossible: there are none, or some are not positive."""
    return sae.threshold is None or not bool((sae.threshold > 0).all())


def _stood_in(sae: SaeParams, scale: Float[Tensor, " n_features"], name: str) -> SaeParams:
    return replace(sae, stand_in=scale, origin=replace(sae.origin, stand_in_name=name))


def by_activation(
    spec: ActivationQuantile,
    saes: SaeShelf,
    lm: LanguageModel,
    tokens: Mapping[str, Sequence[TokenBatch]],
    trainer: TrainerSpec,
    folder: Path,
    keys: Collection[SaeKey] | None = None,
) -> SaeShelf:
    """Return the SAEs, those without thresholds with a quantile of their positive activations.

    ``keys`` are the SAEs of this language model, None for all; the others stay as they are. One
    pass over the tokens serves all SAEs that fit into memory together; ``folder`` keeps what it
    found. A feature that is never active there gets the median of the others' scales.
    """
    needed = [
        key
        for key, known in saes.facts.items()
        if "threshold" in known.unfoldable and (keys is None or key in keys)
    ]
    if not needed:
        return saes
    batches = _some(spec, tokens)
    n_tokens = sum(int(batch.counts.sum()) for batch in batches)
    about: list[Any] = [
        code_of(by_activation, LmSource),
        trainer.device_type,
        lm.name,
        lm.revision,
        str(next(lm.parameters()).dtype),
    ]
    about += [trainer.precision, [b.content() for b in batches]]
    sample = hashed(about)
    scales = {}
    for part in saes.parts([{key} for key in needed]):
        some = saes.only([key for key in needed if key in part])
        kept = [[list(key), known.identity] for key, known in some.facts.items()]
        names = [f"{hashed([sample, kept, n])}.safetensors" for n in range(len(batches))]
        paths = [folder / name for name in names]
        run_batches(trainer, _Active(some), lm, batches, "activations for folding", paths)
        for key in some:
            origin = saes.facts[key].origin
            scales[origin] = _scale(key, paths, saes.facts[key].n_features, spec.quantile)

    def dressed(sae: SaeParams) -> SaeParams:
        if sae.origin not in scales:
            return sae
        scale, n_never = scales[sae.origin]
        name = (
            f"quantile {spec.quantile} of the positive activations on {n_tokens:,} tokens "
            f"({n_never} features never active: the others' median), {sample}"
        )
        return _stood_in(sae, scale, name)

    return saes.dressed(dressed, keys)


def _some(spec: ActivationQuantile, tokens: Mapping[str, Sequence[TokenBatch]]) -> list[TokenBatch]:
    """Return batches of every text set, in random order until they have enough tokens."""
    share, chosen = spec.n_tokens / len(tokens), []
    for of_set in tokens.values():
        n = 0
        for number in np.random.default_rng(0).permutation(len(of_set)):
            if n >= share:
                break
            chosen.append(of_set[number])
            n += int(of_set[number].counts.sum())
    return chosen


@dataclass(frozen=True)
class _Active:
    """Work on batches: every activation of each SAE, and which feature's it is."""

    saes: Saes

    def to(self, device: torch.device) -> _Active:
        return _Active({key: self.saes[key].to(device) for key in self.saes})

    @torch.inference_mode()
    def __call__(self, lm: LanguageModel, batch: TokenBatch) -> dict[str, Tensor]:
        hidden = lm.states(batch.ids, tuple(sorted({key.layer for key in self.saes})))
        kept = {}
        for key in self.saes:
            with torch.autocast(batch.ids.device.type, enabled=False):
                active = encode(self.saes[key], hidden[key.layer][batch.counts].float())
            kept[f"{key.suite}|{key.layer}|feature"] = active.features
            kept[f"{key.suite}|{key.layer}|value"] = active.values
        return kept

    def join(self, one: dict[str, Tensor], other: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        return {name: torch.cat([found, other[name]]) for name, found in one.items()}


def _scale(
    key: SaeKey, paths: Sequence[Path], n_features: int, quantile: float
) -> tuple[Float[Tensor, " n_features"], int]:
    """Return each feature's scale, and how many features were never active."""
    parts: dict[str, list[Tensor]] = {"feature": [], "value": []}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name, found in parts.items():
                found.append(file.get_tensor(f"{key.suite}|{key.layer}|{name}"))
    scale = quantiles(torch.cat(parts["feature"]), torch.cat(parts["value"]), n_features, quantile)
    never = scale.isnan()
    if never.all():
        raise InputError(
            f"no feature of {key.name} is active on the texts, so there is no activation to "
            "fold by: take other texts, or stand_in=decoder_norm"
        )
    return torch.where(never, scale[~never].median(), scale), int(never.sum())


def quantiles(
    features: Int64[Tensor, " n"], values: Float[Tensor, " n"], n_features: int, quantile: float
) -> Float[Tensor, " n_features"]:
    """Return a quantile of each feature's values, interpolated linearly; NaN where it has none."""
    order = torch.argsort(values)
    order = order[torch.argsort(features[order], stable=True)]
    values = values[order].double()
    counts = torch.bincount(features, minlength=n_features)
    starts = counts.cumsum(0) - counts
    place = quantile * (counts - 1).clamp(min=0).double()
    below = place.floor().long()
    above = torch.minimum(below + 1, (counts - 1).clamp(min=0))
    last = max(len(values) - 1, 0)
    low, high = (values[(starts + at).clamp(max=last)] for at in (below, above))
    found = low + (place - below) * (high - low)
    return torch.where(counts > 0, found, torch.nan).float()

"""Scales for folding SAEs without thresholds: decoder norms, or quantiles of activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.lm.source import LmSource
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Forward, Recording, tensor_name
from saematch.sae.suites import SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.readers import Reader
from saematch.texts.tokens import TokenBatch


@spec("stand_in")
class NoStandIn:
    """Spec: the run refuses SAEs that cannot be folded by thresholds."""


@spec("stand_in")
class DecoderNorm:
    """Spec: the norms of the decoder vectors replace missing thresholds; the norms become 1."""


@spec("stand_in")
class ActivationQuantile:
    """Spec: a quantile of each feature's positive activations replaces missing thresholds."""

    quantile: float
    """Quantile between 0 and 1. Near 0 it is like a JumpReLU threshold, which all positive
    activations exceed."""
    n_tokens: int
    """Approximate number of tokens in the sample of the run's texts, in equal shares of each text
    set."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1 or self.n_tokens < 1:
            raise InputError(
                f"stand_in.quantile={self.quantile} must lie between 0 and 1, and "
                f"stand_in.n_tokens={self.n_tokens} be at least 1"
            )


StandIn = NoStandIn | DecoderNorm | ActivationQuantile


def by_decoder_norm(sae: SaeParams) -> SaeParams:
    """Return the SAE with decoder norms as scales if it lacks thresholds, else unchanged."""
    if not lacks_thresholds(sae):
        return sae
    return _with_stand_in(sae, fold_scale(sae, "decoder_norm"), "decoder norm")


def lacks_thresholds(sae: SaeParams) -> bool:
    """Return whether an SAE has no thresholds, or some that are not positive."""
    return sae.threshold is None or not bool((sae.threshold > 0).all())


def _with_stand_in(sae: SaeParams, scale: Float[Tensor, " n_features"], name: str) -> SaeParams:
    return replace(sae, stand_in=scale, origin=replace(sae.origin, stand_in_name=name))


def by_activation(
    spec: ActivationQuantile, saes: SaeShelf, texts: TextPass, folder: Path
) -> SaeShelf:
    """Return the SAEs; those without thresholds get quantiles of their positive activations.

    The activations come from a pass over a sample of the texts, and ``folder`` keeps them. A
    feature that is never active in the sample gets the median scale of the other features. Raises
    ``InputError`` if no feature of an SAE is active.
    """
    lacking = [key for key, facts in saes.facts.items() if "threshold" in facts.unfoldable]
    if not lacking:
        return saes
    sample = replace(
        texts,
        readers={
            label: Reader(reader.lm, _sample(spec, reader.tokens))
            for label, reader in texts.readers.items()
        },
    )
    twins = sample.models.twins(saes.only(lacking))
    recorder = ActivationRecorder(folder, tuple(dict.fromkeys(twins.values())))
    recording = sample.record(saes, {"activations": recorder}, "measure activations")
    scales = {
        key: _scale(key, recording["activations"], saes.facts[key].n_features, spec.quantile)
        for key in recorder.saes
    }
    for label in sample.readers:
        keys = [key for key in saes if sample.models.of(key) == label]
        of_model = {
            saes.facts[key].origin: (
                scales[key].values,
                _scale_name(spec, sample, label, scales[key].n_never),
            )
            for key in keys
            if key in scales
        }
        if of_model:
            saes = saes.dressed(_stand_in_adder(of_model), keys)
    return saes


def _sample(
    spec: ActivationQuantile, tokens: Mapping[str, Sequence[TokenBatch]]
) -> dict[str, tuple[TokenBatch, ...]]:
    """Return random batches of every text set, until they have enough tokens."""
    share = spec.n_tokens / len(tokens)
    sample = {}
    for name, of_set in tokens.items():
        n_tokens, chosen = 0, []
        for number in np.random.default_rng(0).permutation(len(of_set)):
            if n_tokens >= share:
                break
            chosen.append(of_set[number])
            n_tokens += int(of_set[number].counts.sum())
        sample[name] = tuple(chosen)
    return sample


def _scale_name(spec: ActivationQuantile, sample: TextPass, label: str, n_never: int) -> str:
    """Return the name of an SAE's scale, which has ``n_never`` features that are never active."""
    batches = [batch for of_set in sample.readers[label].tokens.values() for batch in of_set]
    n_tokens = sum(int(batch.counts.sum()) for batch in batches)
    facts = [code_of(by_activation, LmSource), sample.identity(label)]
    return (
        f"quantile {spec.quantile} of the positive activations on {n_tokens:,} tokens "
        f"({n_never} features never active: the others' median), "
        f"{hashed([*facts, [batch.identity for batch in batches]])}"
    )


def _stand_in_adder(
    scales: Mapping[SaeOrigin, tuple[Float[Tensor, " n_features"], str]],
) -> Callable[[SaeParams], SaeParams]:
    """Return the function that adds the scale and its name to an SAE, if there is a scale."""

    def add_scale(sae: SaeParams) -> SaeParams:
        return _with_stand_in(sae, *scales[sae.origin]) if sae.origin in scales else sae

    return add_scale


@dataclass(frozen=True)
class ActivationRecorder:
    """Records every positive activation of each SAE and the feature that it belongs to."""

    runs_model: ClassVar[bool] = False

    folder: Path
    saes: tuple[SaeKey, ...]

    def needs(self) -> dict[SaeKey, frozenset[SaeKey]]:
        """Return one item for each SAE."""
        return {key: frozenset({key}) for key in self.saes}

    def only(self, items: Collection[SaeKey]) -> ActivationRecorder:
        """Return a recorder of some of the SAEs."""
        return replace(self, saes=tuple(items))

    def facts(self) -> list[Any]:
        """Return nothing: SAEs, models and texts determine the activations."""
        return []

    def record(self, forward: Forward) -> Kept:
        """Return the features and values of all activations of each SAE."""
        kept = {}
        for key in self.saes:
            active = forward.active(key)
            kept[tensor_name(key, "feature")] = active.features
            kept[tensor_name(key, "value")] = active.values
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the activations of both halves of a batch."""
        return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


class _Scale(NamedTuple):
    values: Float[Tensor, " n_features"]
    n_never: int
    """Number of features that were never active."""


def _scale(key: SaeKey, recording: Recording, n_features: int, quantile: float) -> _Scale:
    """Return the scale of each feature of an SAE."""
    names = [tensor_name(key, name) for name in ("feature", "value")]
    features, values = map(torch.cat, zip(*recording.batches(names), strict=True))
    scale = quantiles(features, values, n_features, quantile)
    never = scale.isnan()
    if never.all():
        raise InputError(
            f"no feature of {key.name} is active on the texts, so there is no activation to "
            "fold by: take other texts, or stand_in=decoder_norm"
        )
    return _Scale(torch.where(never, scale[~never].median(), scale), int(never.sum()))


def quantiles(
    features: Int64[Tensor, " n"], values: Float[Tensor, " n"], n_features: int, quantile: float
) -> Float[Tensor, " n_features"]:
    """Return a quantile of each feature's values, interpolated linearly; NaN without values."""
    order = torch.argsort(values)
    order = order[torch.argsort(features[order], stable=True)]
    values = values[order].double()
    counts = torch.bincount(features, minlength=n_features)
    starts = counts.cumsum(0) - counts
    rank = quantile * (counts - 1).clamp(min=0).double()
    below = rank.floor().long()
    above = torch.minimum(below + 1, (counts - 1).clamp(min=0))
    last = max(len(values) - 1, 0)
    low, high = (values[(starts + ranks).clamp(max=last)] for ranks in (below, above))
    interpolated = low + (rank - below) * (high - low)
    return torch.where(counts > 0, interpolated, torch.nan).float()

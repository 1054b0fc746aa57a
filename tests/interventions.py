"""Interventions on a model without the product's code: the oracle of ``verify``.

Each intervention is a forward of the whole model in float64 with hooks, for one event at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from architectures import build
from evaluations import split_texts, subject_of
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.evaluate.evaluation import Subject
from saematch.lm.hooks import LanguageModel, hidden_of
from saematch.matching.matches import MatchSet
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.texts.tokens import TokenBatch, TokenisedTexts, counting

SPECIAL = (0, 1)
"""Token ids that do not count: BOS, and a token that occurs inside texts."""
FIRST = 2


def texts_of(n: int, seed: int, repeat: bool = False) -> TokenisedTexts:
    """Return random texts of 6 to 14 tokens, some of them special; also the first one again."""
    g = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(n):
        length = int(torch.randint(6, 15, (1,), generator=g))
        ids = torch.randint(2, 64, (length,), generator=g)
        ids[torch.rand(length, generator=g) < 0.1] = 1
        ids[0], ids[-2:] = 0, torch.tensor([5, 6])
        texts.append(ids)
    return tokenised(texts + texts[:1] * repeat)


def tokenised(texts: Sequence[torch.Tensor]) -> TokenisedTexts:
    """Return texts whose first and special tokens do not count."""
    return TokenisedTexts(
        torch.cat(list(texts)),
        torch.cat([counting(ids[None], SPECIAL)[0] for ids in texts]),
        torch.tensor([len(ids) for ids in texts]),
    )


def lively(architecture: str) -> LanguageModel:
    """Return a model with random weights whose blocks change hidden states a lot."""
    lm = build(architecture)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return lm


def fitting_sae(
    lm: LanguageModel, layer: int, activation: str, n_features: int, seed: int
) -> SaeParams:
    """Return a random SAE of which about a quarter of the features is active on each token."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, lm.n_embeddings, (4, 12), generator=g)
    scale = lm.states(ids, (layer,))[layer][:, 1:].std()
    d = lm.d_model
    origin = SaeOrigin(layer=layer, release="fitting", sae_id=f"{activation}/{seed}/{n_features}")
    bias = -0.7 if activation == "relu" else 0.0
    thresholds = torch.empty(n_features).log_normal_(-0.4, 0.3, generator=g)
    return SaeParams(
        W_enc=torch.randn(d, n_features, generator=g) / (scale * d**0.5),
        b_enc=bias + 0.1 * torch.randn(n_features, generator=g),
        W_dec=0.5 * scale * torch.randn(n_features, d, generator=g),
        b_dec=torch.randn(d, generator=g),
        threshold=thresholds if activation == "jumprelu" else None,
        activation=activation,
        origin=replace(origin, stand_in_name="ones") if activation != "jumprelu" else origin,
        k=n_features // 4 if activation == "topk" else None,
        stand_in=torch.ones(n_features) if activation != "jumprelu" else None,
    )


def subject_with(
    folder: Path,
    lm: LanguageModel,
    saes: tuple[SaeParams, SaeParams],
    pair: Pair,
    arms: dict[str, Match],
    texts: Sequence[Sequence[TokenBatch]],
) -> Subject:
    """Return the subject of one pair; ``texts`` has batches of evaluation and calibration texts."""
    matches = MatchSet((pair,), {name: {pair: match} for name, match in arms.items()})
    subject = subject_of(dict(zip(pair, saes, strict=True)), matches, folder=folder / "sums")
    evaluated, fitted = ({"t": part} for part in texts)
    return split_texts(subject, lm, evaluated, fitted)


def plain_jacobian(lm, ids, source, target, text, position):
    """Return the Jacobian at a token by a forward of the whole model with hooks."""

    def output(x):
        seen = []

        def replace(_module, _args, out):
            hidden = hidden_of(out).clone()
            hidden[0, position] = x
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        def keep(_module, _args, out):
            seen.append(hidden_of(out)[0, position])

        hooks = [
            lm.blocks[layer].register_forward_hook(hook)
            for layer, hook in ((source, replace), (target, keep))
        ]
        try:
            lm.model(input_ids=ids[text : text + 1], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return seen[0]

    x = lm.capture(ids, (source,))[0][source][text, position]
    return torch.autograd.functional.jacobian(output, x, vectorize=True)


class Event(NamedTuple):
    """A token of a text at which something is done to a feature."""

    text: tuple[int, ...]
    position: int
    feature: int


class Oracle:
    """The effects of interventions on one pair of SAEs, in float64."""

    def __init__(
        self,
        lm: LanguageModel,
        pair: Pair,
        saes: Sequence[SaeParams],
        fitted: TokenisedTexts,
    ) -> None:
        self.lm, self.layers = lm, (pair.source.layer, pair.target.layer)
        self.source, self.target = (sae.to("cpu", torch.float64) for sae in saes)
        self.fitted = fitted
        self.clean = cache(self._clean)

    def run(self, text, vector=None, position=None):
        """Return ``resid_post`` of both layers, with a vector added to the first at a position."""
        seen = []

        def add(_module, _args, output):
            if vector is not None:
                hidden_of(output)[0, position] += vector
            seen.append(hidden_of(output)[0].clone())

        def keep(_module, _args, output):
            seen.append(hidden_of(output)[0].clone())

        hooks = [
            self.lm.blocks[layer].register_forward_hook(hook)
            for layer, hook in zip(self.layers, (add, keep), strict=True)
        ]
        try:
            with torch.inference_mode():
                self.lm.model(input_ids=torch.tensor([text]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def _clean(self, text):
        """Return the activations of both SAEs on a text, ``[n_tokens, n_features]``."""
        x, y = self.run(text)
        return self.source.encode(x).numpy(), self.target.encode(y).numpy()

    def after(self, event: Event, vector) -> tuple[np.ndarray, np.ndarray]:
        """Return pre-activations and activations of the target after an intervention."""
        _, y = self.run(event.text, torch.as_tensor(vector).double(), event.position)
        y = y[event.position][None]
        pre = (y @ self.target.W_enc + self.target.b_enc)[0]
        return pre.numpy(), self.target.encode(y)[0].numpy()

    def values(self, event: Event) -> tuple[float, np.ndarray]:
        """Return the activation of the event's source feature, and those of all target features."""
        f, z = self.clean(event.text)
        return f[event.position, event.feature], z[event.position]

    @cached_property
    def fitted_values(self) -> list[np.ndarray]:
        """Positive activations of each source feature on the tokens of calibration texts."""
        values = [[] for _ in range(self.source.n_features)]
        of_texts = self.fitted.ids.split(self.fitted.lengths.tolist())
        for text in (tuple(ids.tolist()) for ids in of_texts):
            f, _ = self.clean(text)
            for position in range(FIRST, len(text)):
                if text[position] not in SPECIAL:
                    for feature in np.flatnonzero(f[position]):
                        values[feature].append(f[position, feature])
        return [np.array(of_feature) for of_feature in values]


def ranked(match: Match, feature: int) -> list[int]:
    """Return the partners of a feature by descending absolute weight."""
    chosen = (match.rows == feature).numpy()
    columns, weights = match.columns.numpy()[chosen], match.weights.abs().numpy()[chosen]
    return [columns[n].item() for n in np.argsort(-weights, kind="stable")]


def sources(match: Match, target: int) -> dict[int, float]:
    """Return the sources of a target feature with their absolute weights."""
    chosen = (match.columns == target).numpy()
    rows = match.rows.numpy()[chosen].tolist()
    return dict(zip(rows, match.weights.abs().numpy()[chosen].tolist(), strict=True))


def effects_of(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return effect, off and drop of each target feature."""
    active = before > 0
    D = np.zeros(len(before))
    D[active] = np.clip(1 - after[active] / before[active], -1, 1)
    off = (active & (after == 0)).astype(float)
    return D, off, np.where(active, np.maximum(before - after, 0), 0)

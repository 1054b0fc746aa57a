"""Explanations that the run creates from contexts with active features."""

from __future__ import annotations

import heapq
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch

from saematch.chat.answers import read_text
from saematch.chat.asking import Chat
from saematch.chat.questions import Question
from saematch.core.errors import InputError
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.explain.contexts import (
    HALVES,
    ContextRecorder,
    Contexts,
    ContextStore,
    KeptContexts,
)
from saematch.explain.explanations import Explanation, FeatureKey, Inputs
from saematch.explain.prompts import EXPLAIN
from saematch.sae.passes import TextPass
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)

TOKENS_NAMED = 8
"""Maximum number of tokens in a description by tokens."""
QUANTILES = 5
"""Number of contexts of the sample that an LLM sees: evenly spaced from most to least active."""


@spec("explain")
class OwnExplanations:
    """Spec of explanations from contexts in the run's own texts, for its own language models.

    The texts are split into two halves. A feature's explanation comes from the first half that has
    contexts. A second explanation, from the other half, shows how similar two explanations of one
    feature can be.
    """

    by: str
    """``tokens``: the tokens on which the feature is most active, without an LLM; ``llm``: the
    run's LLM explains the contexts."""
    n_top: int = 10
    """Most active contexts of each feature and half."""
    n_samples: int = 10
    """Random contexts of each feature and half; ``llm`` sees quantiles of them."""
    window: int = 10
    """Tokens of a context before the most active token; half as many follow it."""

    def __post_init__(self) -> None:
        if self.by not in ("tokens", "llm"):
            raise InputError(f"explain.by={self.by!r} is neither tokens nor llm")
        if self.n_top < 1 or self.n_samples < 0 or self.window < 1:
            raise InputError(
                f"explain: n_top={self.n_top}, n_samples={self.n_samples} and window={self.window} "
                "must be at least 1, 0 and 1"
            )

    @property
    def on_texts(self) -> bool:
        """Return True: contexts come from texts."""
        return True

    @property
    def asks_llm(self) -> bool:
        """Whether an LLM explains the contexts."""
        return self.by == "llm"

    def check(self, saes: Saes) -> None:
        """Accept every SAE."""

    def recorder(self, saes: Saes, inputs: Inputs) -> ContextRecorder | None:
        """Return the recorder of the contexts that no run has kept yet; None if all are kept."""
        assert inputs.recorder_folder is not None
        return self._store(saes, inputs).recorder(inputs.recorder_folder)

    def open(self, saes: Saes, inputs: Inputs) -> OwnTexts:
        """Merge the contexts; features that are not active have no explanation."""
        assert inputs.texts is not None
        assert inputs.recorder_folder is not None
        assert inputs.chat is not None or not self.asks_llm
        store = self._store(saes, inputs)
        contexts = store.contexts(inputs.recording)
        shutil.rmtree(inputs.recorder_folder, ignore_errors=True)
        for key, kept in contexts.items():
            n_features = store.saes.facts[key].n_features
            n_active = len(kept.top.feature.unique())
            log.info("%s: %d of %d features are active", key.name, n_active, n_features)
        return OwnTexts(self, contexts, inputs.texts, inputs.chat if self.by == "llm" else None)

    def _store(self, saes: Saes, inputs: Inputs) -> ContextStore:
        assert inputs.texts is not None
        folder = inputs.folder / "contexts"
        return ContextStore(SaeShelf.of(saes), inputs.texts, folder, self.n_top, self.n_samples)


class _HalfKey(NamedTuple):
    """A feature and the half of the texts from which it is explained."""

    feature: FeatureKey
    half: int


class OwnTexts:
    """Explanations of the features that are active in the texts."""

    def __init__(
        self,
        spec: OwnExplanations,
        contexts: Mapping[SaeKey, KeptContexts],
        texts: TextPass,
        chat: Chat | None,
    ) -> None:
        self.spec, self.contexts, self.texts, self.chat = spec, contexts, texts, chat
        self.asks_llm = chat is not None
        self._ids = {label: reader.texts for label, reader in texts.readers.items()}
        self._names: dict[tuple[str, int], str] = {}

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that are active in any text."""
        return self.contexts[sae].top.feature.unique().tolist()

    def of(
        self, features: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Explain features; with ``others`` a second time, from the other half of the texts."""
        contexts = {
            _HalfKey(feature, half): top
            for feature in dict.fromkeys(features)
            for half, top in self._halves(feature)[: HALVES if others else 1]
        }
        if self.chat is None:
            explained = {key: self._by_tokens(key, top) for key, top in contexts.items()}
        else:
            explained = self._by_llm(self.chat, contexts)
        explanations: dict[FeatureKey, tuple[Explanation, ...]] = {}
        for key, explanation in explained.items():
            earlier = explanations.get(key.feature, ())
            explanations[key.feature] = (*earlier, explanation)
        return explanations

    def _halves(self, key: FeatureKey) -> list[tuple[int, Contexts]]:
        """Return the top contexts of each half that has contexts."""
        top = self.contexts[key.sae].top
        halves = [(half, top.of(key.feature, half)) for half in range(HALVES)]
        return [(half, contexts) for half, contexts in halves if len(contexts.feature)]

    def _by_tokens(self, key: _HalfKey, top: Contexts) -> Explanation:
        """Name the tokens on which the feature is most active, by their share of the activation."""
        mass: dict[str, float] = defaultdict(float)
        label = self.texts.models.of(key.feature.sae)
        for text, position, value in _rows(top):
            mass[self._name(label, int(self._ids[label][text][position]))] += value
        total = sum(mass.values())
        named = [
            f'"{t}" ({v / total:.0%})'
            for t, v in heapq.nlargest(TOKENS_NAMED, mass.items(), key=itemgetter(1))
        ]
        return Explanation(f"active on {', '.join(named)}", "tokens", "tokens", f"half {key.half}")

    def _by_llm(
        self, chat: Chat, contexts: Mapping[_HalfKey, Contexts]
    ) -> dict[_HalfKey, Explanation]:
        """Return the explanations that the LLM gives; without refusals and unreadable replies."""
        questions = {
            key: Question(EXPLAIN, (self._excerpts(key, top),)) for key, top in contexts.items()
        }
        replies = chat.ask(list(questions.values()), "explanations")
        explained: dict[_HalfKey, Explanation] = {}
        for key, question in questions.items():
            text = read_text(replies[question], "explanation") if question in replies else None
            if text:
                tag = f"half {key.half}"
                explained[key] = Explanation(text, chat.model, EXPLAIN.version, tag)
        n_lost = len(questions) - len(explained)
        if n_lost:
            log.warning(
                "%d of %d explanations could not be read or were refused", n_lost, len(questions)
            )
        return explained

    def _excerpts(self, key: _HalfKey, top: Contexts) -> str:
        """Return contexts as one text: the most active, then quantiles of the sample."""
        sae, feature = key.feature
        sample = self.contexts[sae].sample.of(feature, key.half)
        new = sample[~torch.isin(sample.text, top.text)]
        new = new[torch.argsort(new.value, descending=True)]
        ranks = torch.linspace(0, max(0, len(new.value) - 1), QUANTILES).round().long().unique()
        shown = top.join(new[ranks[: len(new.value)]])
        highest = float(top.value[0])
        excerpts = []
        for text, position, value in _rows(shown):
            start, end = max(1, position - self.spec.window), position + 1
            before, token, after = (
                self._decode(sae, text, first, last)
                for first, last in (
                    (start, position),
                    (position, end),
                    (end, end + self.spec.window // 2),
                )
            )
            strength = max(1, round(10 * value / highest))
            excerpts.append(f"{strength}: {before}⟦{token}⟧{after}")
        return " | ".join(excerpts)

    def _name(self, label: str, token: int) -> str:
        """Return the name of a token in descriptions, by the tokenizer of a model."""
        if (label, token) not in self._names:
            text = self.texts.readers[label].lm.tokenizer.decode([token])
            self._names[label, token] = text.strip() or repr(text)[1:-1]
        return self._names[label, token]

    def _decode(self, sae: SaeKey, text: int, start: int, end: int) -> str:
        """Return some tokens of a text in words, by the tokenizer of the SAE's own model."""
        label = self.texts.models.of(sae)
        tokenizer = self.texts.readers[label].lm.tokenizer
        return tokenizer.decode(self._ids[label][text][start:end])


def _rows(contexts: Contexts) -> list[tuple[int, int, float]]:
    columns = (contexts.text, contexts.position, contexts.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))

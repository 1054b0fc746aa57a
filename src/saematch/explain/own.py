"""Explanations made here, from the texts in which features are active."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from saematch.chat.answers import read_text
from saematch.chat.asking import Chat
from saematch.chat.questions import Question
from saematch.core.errors import InputError
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.explain.contexts import HALVES, Contexts, KeptContexts, TextPass, collect_contexts
from saematch.explain.explanations import Explanation, FeatureKey, Means
from saematch.explain.prompts import EXPLAIN
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)

TOKENS_NAMED = 8
"""Tokens in a description by tokens, at most."""
QUANTILES = 5
"""Contexts of the sample that an LLM sees: from its most to its least active, evenly spaced."""


@spec("explain")
class OwnExplanations:
    """Spec of explanations from contexts, collected on the run's own texts and language model.

    Texts are dealt out to two halves; a feature's explanation is made from the first half, and one
    more from the other half says how alike two explanations of one feature can be.
    """

    by: str
    """``tokens``: the tokens on which the feature is most active, without any LLM; ``llm``: the
    run's LLM explains the contexts."""
    n_top: int = 10
    """Most active contexts of each feature and half."""
    n_samples: int = 10
    """Contexts of each feature and half drawn at random, of which ``llm`` sees quantiles."""
    window: int = 10
    """Tokens before the most active one in a context; half as many after it."""

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
        """Contexts come from texts."""
        return True

    @property
    def asks_llm(self) -> bool:
        """Only to explain by ``llm``."""
        return self.by == "llm"

    def check(self, saes: Saes) -> None:
        """Any SAE can be explained."""

    def open(self, saes: Saes, means: Means) -> OwnTexts:
        """Collect contexts; ``InputError`` if no feature of a layer is active."""
        assert means.texts is not None
        assert means.chat is not None or not self.asks_llm
        folder = means.folder / "contexts"
        shelf = SaeShelf.of(saes)
        contexts = collect_contexts(shelf, means.texts, self.n_top, self.n_samples, folder)
        for key, kept in contexts.items():
            n_features = shelf.facts[key].n_features
            n_active = len(kept.top.feature.unique())
            if not n_active:
                raise InputError(
                    f"no feature of {key.name} is active on these texts, so none can be "
                    "explained: take more texts (dataset.n_texts)"
                )
            log.info("%s: %d of %d features are active", key.name, n_active, n_features)
        return OwnTexts(self, contexts, means.texts, means.chat if self.by == "llm" else None)


class OwnTexts:
    """Explanations of the features that were active."""

    def __init__(
        self,
        spec: OwnExplanations,
        contexts: Mapping[SaeKey, KeptContexts],
        texts: TextPass,
        chat: Chat | None,
    ) -> None:
        self.spec, self.contexts, self.texts, self.chat = spec, contexts, texts, chat
        self.asks_llm = chat is not None

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that were active in any text."""
        return self.contexts[sae].top.feature.unique().tolist()

    def of(
        self, wanted: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Explain features; with ``others`` a second time, from the other half of the texts."""
        found: dict[FeatureKey, tuple[Explanation, ...]] = {}
        shown = {
            (feature, half): contexts
            for feature in dict.fromkeys(wanted)
            for half, contexts in self._halves(feature)[: HALVES if others else 1]
        }
        if self.chat is None:
            made: Mapping[tuple[FeatureKey, int], Explanation | None] = {
                asked: self._tokens(*asked, *contexts) for asked, contexts in shown.items()
            }
        else:
            made = self._by_llm(self.chat, shown)
        for (feature, _), explanation in made.items():
            if explanation is not None:
                found[feature] = (*found.get(feature, ()), explanation)
        return found

    def _halves(self, wanted: FeatureKey) -> list[tuple[int, tuple[Contexts, Contexts]]]:
        """Return the top contexts and the sample of each half that has any."""
        kept = self.contexts[wanted.sae]
        both = kept.top.of(wanted.feature), kept.sample.of(wanted.feature)
        halves = []
        for half in range(HALVES):
            top, sample = (some[some.text % HALVES == half] for some in both)
            if len(top.feature):
                halves.append((half, (top, sample)))
        return halves

    def _tokens(self, asked: FeatureKey, half: int, top: Contexts, __: Contexts) -> Explanation:
        """Name the tokens on which the feature is most active, by their share of the activation."""
        texts = self.texts.of(asked.sae)
        mass: Counter[str] = Counter()
        for text, position, value in _rows(top):
            token = texts.lm.tokenizer.decode(texts.texts[text][position : position + 1])
            mass[token.strip() or repr(token)[1:-1]] += value  # type: ignore[assignment]  # a float
        total = sum(mass.values())
        named = [f'"{t}" ({v / total:.0%})' for t, v in mass.most_common(TOKENS_NAMED)]
        return Explanation(f"active on {', '.join(named)}", "tokens", "tokens", f"half {half}")

    def _by_llm(
        self, chat: Chat, shown: Mapping[tuple[FeatureKey, int], tuple[Contexts, Contexts]]
    ) -> dict[tuple[FeatureKey, int], Explanation | None]:
        questions = {
            asked: Question(EXPLAIN, (self._excerpts(asked[0].sae, *contexts),))
            for asked, contexts in shown.items()
        }
        replies = chat.ask(list(questions.values()), "explanations")
        made: dict[tuple[FeatureKey, int], Explanation | None] = {}
        for asked, question in questions.items():
            text = read_text(replies[question], "explanation") if question in replies else None
            of_half = f"half {asked[1]}"
            explained = text and Explanation(text, chat.model, EXPLAIN.version, of_half)
            made[asked] = explained or None
        lost = sum(explanation is None for explanation in made.values())
        if lost:
            log.warning("%d of %d explanations could not be read or were refused", lost, len(made))
        return made

    def _excerpts(self, sae: SaeKey, top: Contexts, sample: Contexts) -> str:
        """Return contexts as one text: the most active, then quantiles of the sample."""
        texts = self.texts.of(sae)
        new = sample[~torch.isin(sample.text, top.text)]
        new = new[torch.argsort(new.value, descending=True)]
        ranks = torch.linspace(0, max(0, len(new.value) - 1), QUANTILES).round().long().unique()
        every = top.join(new[ranks[: len(new.value)]])
        highest = float(top.value[0])
        lines = []
        for text, position, value in _rows(every):
            ids = texts.texts[text]
            start, end = max(1, position - self.spec.window), position + 1
            before, token, after = (
                texts.lm.tokenizer.decode(ids[a:b])
                for a, b in ((start, position), (position, end), (end, end + self.spec.window // 2))
            )
            lines.append(f"{max(1, round(10 * value / highest))}: {before}⟦{token}⟧{after}")
        return " | ".join(lines)


def _rows(contexts: Contexts) -> list[tuple[int, int, float]]:
    columns = (contexts.text, contexts.position, contexts.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))

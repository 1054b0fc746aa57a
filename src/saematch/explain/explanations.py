"""What is said in words about features, and what every source of explanations offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.pairs import SaeKey
from saematch.sae.suites import Saes

if TYPE_CHECKING:
    from saematch.chat.asking import Chat
    from saematch.explain.contexts import TextPass


class FeatureKey(NamedTuple):
    """One feature of one SAE of a run."""

    sae: SaeKey
    feature: int


@dataclass(frozen=True)
class Explanation:
    """One text about one feature. Raises ``InputError`` for an empty one."""

    text: str
    explainer: str
    """Who wrote it: the name of a language model, or ``tokens``."""
    method: str = ""
    """How it was made, in the source's own words."""
    tag: str = ""
    """Which export or file it comes from, so that a later change of the source can be told."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("an explanation is empty")


@runtime_checkable
class Explanations(Protocol):
    """The explanations of the SAEs of a run."""

    asks_llm: bool
    """Whether the run's LLM makes them, when they are asked for."""

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that have an explanation, or will when asked for, in rising order."""
        ...

    def of(
        self, wanted: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Return the explanations of features, the one to use first.

        Those after it are of other explainers, or from other contexts; a source that would have to
        make them does so with ``others`` alone. A feature without any is absent.
        """
        ...


@dataclass(frozen=True)
class Means:
    """What a source may use to get or make explanations."""

    folder: Path
    """Where runs keep what they share."""
    texts: TextPass | None = None
    """Language model and texts, for a source with ``on_texts``."""
    chat: Chat | None = None
    """The LLM of the run, if it has one."""


@runtime_checkable
class ExplanationSource(Protocol):
    """Spec of where explanations come from."""

    @property
    def on_texts(self) -> bool:
        """Whether the language model and texts are needed."""
        ...

    @property
    def asks_llm(self) -> bool:
        """Whether the run's LLM is asked."""
        ...

    def check(self, saes: Saes) -> None:
        """Refuse, before any work, SAEs that the source cannot explain: ``InputError``."""
        ...

    def open(self, saes: Saes, means: Means) -> Explanations:
        """Get ready to explain features of these SAEs; ``InputError`` if it covers none of one."""
        ...

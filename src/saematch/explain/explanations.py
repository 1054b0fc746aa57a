"""Explanations of features in words, and the interface of their sources."""

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
    from saematch.sae.passes import TextPass
    from saematch.sae.recorders import Recorder, Recording


class FeatureKey(NamedTuple):
    """One feature of one SAE of a run."""

    sae: SaeKey
    feature: int


@dataclass(frozen=True)
class Explanation:
    """One text about one feature. Raises ``InputError`` if the text is empty."""

    text: str
    explainer: str
    """Author: the name of a language model, or ``tokens``."""
    method: str = ""
    """Method, in the source's own words."""
    tag: str = ""
    """Identifier of the export or file, which changes if the source changes."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("an explanation is empty")


@runtime_checkable
class Explanations(Protocol):
    """The explanations of the SAEs of a run."""

    asks_llm: bool
    """Whether ``of`` asks the run's LLM for them."""

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that ``of`` can explain, in ascending order."""
        ...

    def of(
        self, features: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Return the explanations of each feature; the first is the one to use.

        Further explanations come from other explainers or other contexts. A source that creates
        explanations creates further ones only with ``others``. Features without any explanation
        are absent.
        """
        ...


@dataclass(frozen=True)
class Inputs:
    """Inputs that a source may use to load or create explanations."""

    folder: Path
    """Folder of files that runs share."""
    texts: TextPass | None = None
    """Language models and texts, for a source with ``on_texts``."""
    recorder_folder: Path | None = None
    """Folder for the files of the recorder, in the run's folder; ``open`` deletes it."""
    recording: Recording | None = None
    """Recording of the source's ``recorder``, if it returned one."""
    chat: Chat | None = None
    """LLM of the run, if it has one."""


@runtime_checkable
class ExplanationSource(Protocol):
    """Spec of the source of explanations."""

    @property
    def on_texts(self) -> bool:
        """Whether the source needs the language model and texts."""
        ...

    @property
    def asks_llm(self) -> bool:
        """Whether the source needs the run's LLM."""
        ...

    def check(self, saes: Saes) -> None:
        """Raise ``InputError``, before any work, if the source cannot explain an SAE."""
        ...

    def recorder(self, saes: Saes, inputs: Inputs) -> Recorder | None:
        """Return a recorder of the data that ``open`` needs from texts; None if nothing is missing.

        ``open`` then needs the recording in its ``inputs``.
        """
        ...

    def open(self, saes: Saes, inputs: Inputs) -> Explanations:
        """Return the explanations; ``InputError`` if a file or export explains none of an SAE."""
        ...

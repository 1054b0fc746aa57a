"""What an LLM is asked and what it answers, independent of how it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from saematch.chat.prompts import Prompt
from saematch.core.files import hashed


class Asked(NamedTuple):
    """What is kept of a question beside its answer."""

    key: str
    """Hash of all that follows and of the model."""
    prompt: str
    """Version of the wording."""
    texts: tuple[str, ...]
    repeat: int


@dataclass(frozen=True, eq=False)
class Question:
    """One question; two with the same wording, texts and repeat are the same question."""

    prompt: Prompt
    texts: tuple[str, ...]
    repeat: int = 0
    """Tells apart what is asked again to see whether the answer is the same."""

    def key(self, model: str) -> str:
        """Return the hash under which a model's answer is kept."""
        return hashed([model, self.prompt.version, list(self.texts), self.repeat])

    def asked(self, model: str) -> Asked:
        """Return what is kept of the question."""
        return Asked(self.key(model), *self._about())

    def _about(self) -> tuple[str, tuple[str, ...], int]:
        return self.prompt.version, self.texts, self.repeat

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Question) and self._about() == other._about()

    def __hash__(self) -> int:
        return hash(self._about())

    def tokens(self) -> tuple[int, int]:
        """Return about how many tokens question and answer have, the answer at its longest.

        Four characters of ASCII make a token, any other character is one.
        """
        said = "".join(m["content"] + "<message>" for m in self.prompt.messages(self.texts))
        plain = len(said.encode("ascii", "ignore"))
        return -(-plain // 4) + len(said) - plain, self.prompt.max_tokens


@dataclass(frozen=True)
class Reply:
    """One answer as it came."""

    content: str
    """Empty if the model said nothing."""
    refused: bool = False
    """Whether the model, or a filter before it, declined to answer."""
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    """As the server counted them, 0 if it does not."""
    served_by: str = ""
    """The model that answered, in the server's words; often more exact than what was asked for."""


@runtime_checkable
class Judge(Protocol):
    """What judges the pairs of a run, LLM or not."""

    writes: ClassVar[bool]
    """Whether it can write: a paraphrase, an explanation. What only compares cannot."""
    model: str
    """Its name; two judges of one run have different ones."""

    def ask(self, questions: Sequence[Question], what: str) -> dict[Question, Reply]:
        """Return the answers; ``what`` names them in the plural."""
        ...

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Return about how many tokens go in, at most come out, and dollars."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what answered, and what it took."""
        ...

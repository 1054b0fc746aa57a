"""Questions to an LLM and its replies, independent of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from saematch.chat.prompts import Prompt
from saematch.core.files import hashed


class QuestionRecord(NamedTuple):
    """The description of a question that is stored with its answer."""

    key: str
    """Hash of the other fields and the model."""
    prompt: str
    """Version of the wording."""
    texts: tuple[str, ...]
    repeat: int


@dataclass(frozen=True, eq=False)
class Question:
    """A question. Questions with the same wording, texts and repeat are equal."""

    prompt: Prompt
    texts: tuple[str, ...]
    repeat: int = 0
    """Number that distinguishes repetitions, which measure whether the answer stays the same."""

    def key(self, model: str) -> str:
        """Return the hash under which the answer of a model is stored."""
        return hashed([model, self.prompt.version, list(self.texts), self.repeat])

    def record(self, model: str) -> QuestionRecord:
        """Return the description of the question that is stored."""
        return QuestionRecord(self.key(model), *self._identity())

    def _identity(self) -> tuple[str, tuple[str, ...], int]:
        return self.prompt.version, self.texts, self.repeat

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Question) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def tokens(self) -> tuple[int, int]:
        """Return an estimate of the tokens of the question, and the largest number of the answer.

        Four ASCII characters count as one token, and any other character as one token.
        """
        text = "".join(m["content"] + "<message>" for m in self.prompt.messages(self.texts))
        n_ascii = len(text.encode("ascii", "ignore"))
        return -(-n_ascii // 4) + len(text) - n_ascii, self.prompt.max_tokens


@dataclass(frozen=True)
class Reply:
    """An answer of a model."""

    content: str
    """Text of the answer; empty if there is none."""
    refused: bool = False
    """Whether the model or a content filter declined to answer."""
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    """Number of output tokens that the server counted; 0 if it does not count."""
    served_by: str = ""
    """Name that the server gives the model; often more precise than the requested name."""


@runtime_checkable
class Judge(Protocol):
    """Interface of a judge of the pairs of a run, with or without an LLM."""

    writes: ClassVar[bool]
    """Whether it can also write paraphrases and explanations, not only compare."""
    remark: ClassVar[str]
    """Remark in the labels of its scores; empty for an LLM."""
    model: str
    """Name of the judge, unique in a run."""

    def ask(self, questions: Sequence[Question], noun: str) -> dict[Question, Reply]:
        """Return the answers; ``noun`` is their name in messages, in the plural."""
        ...

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Return estimated input tokens, the largest number of output tokens, and dollars."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return the model, its server, and the number and cost of requests."""
        ...

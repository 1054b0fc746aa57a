"""Wording of questions, and quotation of texts in them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from saematch.core.files import hashed

MAX_CHARACTERS = 2000
"""Largest length of a text; longer texts are cut, and the cut is marked."""


@dataclass(frozen=True)
class Prompt:
    """A kind of question: instructions, names of the texts, worked examples, and the answer.

    ``version`` contains a hash of the wording, so that answers to another wording are never used.
    """

    name: str
    system: str
    parts: tuple[str, ...]
    """Name of each text of the question."""
    examples: tuple[tuple[tuple[str, ...], dict[str, object]], ...]
    """Texts and their answers, shown as earlier turns of the conversation."""
    answer: dict[str, object]
    """Properties of the requested JSON object, in order."""
    max_tokens: int
    """Largest length of an answer, in tokens."""

    @cached_property
    def version(self) -> str:
        """Name and hash of the wording."""
        wording = [self.system, self.parts, self.examples, self.answer, self.max_tokens]
        return f"{self.name}-{hashed(wording)[:8]}"

    def messages(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Return the messages of a chat; each text is quoted as data between two tags."""
        turns = [{"role": "system", "content": self.system}]
        for shown, answer in self.examples:
            turns.append({"role": "user", "content": self._quoted(shown)})
            turns.append({"role": "assistant", "content": json.dumps(answer)})
        return [*turns, {"role": "user", "content": self._quoted(texts)}]

    def _quoted(self, texts: Sequence[str]) -> str:
        return "\n".join(
            f"<{part}>{neutral(text)}</{part}>"
            for part, text in zip(self.parts, texts, strict=True)
        )

    def schema(self) -> dict[str, object]:
        """Return the strict JSON schema of the answer."""
        return {
            "type": "object",
            "properties": self.answer,
            "required": list(self.answer),
            "additionalProperties": False,
        }


def neutral(text: str) -> str:
    """Return a text that can neither end its own quotation nor be read as a grade.

    Line breaks and control characters become spaces, angle brackets become other characters, a
    quoted grade loses its punctuation (``label: 3`` becomes ``label 3``), and the result is one
    JSON string.
    """
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    text = text.replace("<", "‹").replace(">", "›")
    text = re.sub(r"(?i)(label)[\W_]*(?=\d)", r"\1 ", text)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rstrip() + " … [cut]"
    return json.dumps(text, ensure_ascii=False)

"""What the wording of a question consists of, and how texts are quoted in it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from saematch.core.files import hashed

MAX_CHARACTERS = 2000
"""Of one text; the rest is cut off, and the cut is marked."""


@dataclass(frozen=True)
class Prompt:
    """One kind of question: instructions, how texts are put into it, worked examples, the answer.

    ``version`` names the wording by its hash, so that an answer to another wording is never taken.
    """

    name: str
    system: str
    parts: tuple[str, ...]
    """What each text of the question is called."""
    examples: tuple[tuple[tuple[str, ...], dict[str, object]], ...]
    """Texts and the answer to them, shown as earlier turns of the same conversation."""
    answer: dict[str, object]
    """Properties of the JSON object that is asked for, in order."""
    max_tokens: int
    """The longest answer, in tokens."""

    @cached_property
    def version(self) -> str:
        """Name and hash of the wording."""
        wording = [self.system, self.parts, self.examples, self.answer, self.max_tokens]
        return f"{self.name}-{hashed(wording)[:8]}"

    def messages(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Return the messages of a chat; each text stands as data between its own two marks."""
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
        """Return the answer as a strict JSON schema."""
        return {
            "type": "object",
            "properties": self.answer,
            "required": list(self.answer),
            "additionalProperties": False,
        }


def neutral(text: str) -> str:
    """Return a text that can neither end its own quotation nor be read as a grade.

    Angle brackets, line breaks and control characters go, a quoted grade loses its sign (``label:
    3`` becomes ``label 3``), and the result is one JSON string.
    """
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    text = text.replace("<", "‹").replace(">", "›")
    text = re.sub(r"(?i)(label)[\W_]*(?=\d)", r"\1 ", text)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rstrip() + " … [cut]"
    return json.dumps(text, ensure_ascii=False)

"""Parsing of answers: the requested JSON object or text."""

from __future__ import annotations

import json
import re

from saematch.chat.questions import Reply
from saematch.core.files import parse_json


def read_text(reply: Reply, field: str) -> str | None:
    """Return the text of the field ``field``; None if the answer has none.

    A server that ignores the schema may answer in plain text. It is accepted if it is one line,
    does not end in a colon, and is not the beginning of JSON or markup.
    """
    if reply.refused or reply.finish_reason == "length":
        return None
    answer = json_object(reply.content)
    if answer is not None:
        text = answer.get(field)
        return text.strip() or None if isinstance(text, str) else None
    line = reply.content.strip()
    if "\n" in line or line.endswith(":") or line.startswith(("{", "<", "```")):
        return None
    return line.removeprefix(f"{field}:").strip(" \"'") or None


def json_object(text: str) -> dict[str, object] | None:
    """Return the JSON object at the end of a text, ignoring a code fence; None if there is none."""
    text = re.sub(r"\s*```\s*$", "", text.rstrip())
    starts = [match.start() for match in re.finditer(r"\{", text)] if text.endswith("}") else []
    for start in starts:
        try:
            return parse_json(text[start:])
        except json.JSONDecodeError:
            continue
    return None

"""What an answer says: the JSON object or the text that was asked for."""

from __future__ import annotations

import json
import re

from saematch.chat.questions import Reply
from saematch.core.files import parse_json


def read_text(reply: Reply, field: str) -> str | None:
    """Return the text that was asked for under ``field``, None if the answer has none.

    A server that ignores the schema may answer in plain text: one line that is no announcement of
    something else and no piece of JSON or markup.
    """
    if reply.refused or reply.finish_reason == "length":
        return None
    found = json_object(reply.content)
    if found is not None:
        text = found.get(field)
        return text.strip() or None if isinstance(text, str) else None
    line = reply.content.strip()
    if "\n" in line or line.endswith(":") or line.startswith(("{", "<", "```")):
        return None
    return line.removeprefix(f"{field}:").strip(" \"'") or None


def json_object(text: str) -> dict[str, object] | None:
    """Return the JSON object that a text is or ends with, a code fence aside; None otherwise."""
    text = re.sub(r"\s*```\s*$", "", text.rstrip())
    starts = [match.start() for match in re.finditer(r"\{", text)] if text.endswith("}") else []
    for start in starts:
        try:
            return parse_json(text[start:])
        except json.JSONDecodeError:
            continue
    return None

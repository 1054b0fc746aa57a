"""Names of a run in Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from saematch.core.files import hashed
from saematch.runs.resuming import settings_of
from saematch.runs.run_folders import MAX_NAME

MAX_LABEL = 80
"""Largest number of characters of a run's label."""
_UNNAMED = ("name", "hydra", "trainer", "experiment", "config_dir", "judge.")
"""Beginnings of settings that labels leave out; ``name`` is the first word of a label."""


def run_label(name: str, overrides: Sequence[str]) -> str:
    """Return a run's name and the settings that its command line changes, in a few words.

    Choices and texts are shown by their value, numbers and lists by the last part of their key:
    ``run_label("skip_layers", ["sae=mixed", "seed=1"])`` is ``skip_layers mixed seed=1``. Settings
    that change no number, such as ``logger`` and ``cache``, are left out.
    """
    label = " ".join([name, *_words(overrides)])
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"


def _words(overrides: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key, sign, value = override.lstrip("+").partition("=")
        if not sign or key.startswith(_UNNAMED) or not settings_of({key: 0}):
            continue
        value = value.strip("'\"[]").rpartition("/")[2]  # the last part of a path
        is_word = re.fullmatch(r"[A-Za-z]\w*", value) and value not in ("true", "false", "null")
        if is_word and "@" not in key:
            yield value
        else:
            yield f"{re.split(r'[.@/]', key)[-1]}={value}"


def wandb_id(name: str, folder: Path) -> str:
    """Return the W&B identifier of a run: its name and the last parts of its folder."""
    parts = folder.parts[-2:]
    identifier = "-".join(parts if name in parts else (name, *parts))
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", identifier)
    if len(safe) > MAX_NAME or safe != identifier:
        return f"{safe[: MAX_NAME - 9]}-{hashed([identifier])[:8]}"
    return identifier

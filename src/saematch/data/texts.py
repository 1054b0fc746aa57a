"""Where evaluation texts come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

ZOO_TEXTS = Path(__file__).parent.parent / "zoo" / "texts"


@dataclass(frozen=True)
class TextSet:
    """Texts of one kind."""

    name: str
    texts: tuple[str, ...]


@runtime_checkable
class TextSource(Protocol):
    """What every spec of texts offers."""

    n_texts: int
    max_tokens: int

    def load(self) -> list[TextSet]:
        """Draw the texts of every kind; ``ValueError`` if they cannot be had."""
        ...


@dataclass(frozen=True)
class ZooTexts:
    """Spec of the embedded held-out texts."""

    kinds: Sequence[str]
    """Among ``prose``, ``docs`` and ``code``."""
    n_texts: int
    """Texts of each kind, drawn at random without replacement."""
    max_tokens: int
    """A text is cut after this many tokens, BOS included."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)

    def load(self) -> list[TextSet]:
        """Draw the texts; ``ValueError`` for a kind that the zoo lacks or for too few texts."""
        known = sorted(path.stem for path in ZOO_TEXTS.glob("*.jsonl"))
        unknown = [kind for kind in self.kinds if kind not in known]
        if unknown:
            raise ValueError(
                f"the zoo has no texts of kind {unknown[0]!r}, only {', '.join(known)}"
            )
        return [
            draw(kind, read_texts(ZOO_TEXTS / f"{kind}.jsonl"), self.n_texts, self.seed)
            for kind in self.kinds
        ]


@dataclass(frozen=True)
class LocalTexts:
    """Spec of texts in the user's own files, one set a file.

    ``.jsonl`` holds an object with the field ``text`` on each line; any other file is plain text
    with an empty line between texts.
    """

    paths: Sequence[str]
    n_texts: int
    max_tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)
        if not self.paths:
            raise ValueError(
                "dataset.paths is empty: name a file, as in dataset.paths=[texts.jsonl]"
            )

    def load(self) -> list[TextSet]:
        """Read and draw; ``ValueError`` for a file missing, damaged or with too few texts."""
        paths = [Path(path) for path in self.paths]
        return [draw(p.stem, read_texts(p), self.n_texts, self.seed) for p in paths]


def check_sizes(n_texts: int, max_tokens: int) -> None:
    """Refuse sizes that leave nothing to measure."""
    if not isinstance(n_texts, int) or not isinstance(max_tokens, int):
        raise ValueError(
            f"dataset.n_texts={n_texts} and dataset.max_tokens={max_tokens} must be whole numbers"
        )
    if n_texts < 1:
        raise ValueError(f"dataset.n_texts={n_texts}: at least one text is needed")
    if max_tokens < 3:
        raise ValueError(
            f"dataset.max_tokens={max_tokens}: at least 3 are needed, BOS and two tokens, since "
            "the loss of a token is predicted from the one before it and BOS is left out"
        )


def read_texts(path: Path) -> list[str]:
    """Read all texts of a file."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the texts in {path}: {error}") from error
    if path.suffix != ".jsonl":
        return [text for text in (part.strip() for part in content.split("\n\n")) if text]
    texts = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: not a JSON object with a field "text" ({error!r})'
            ) from error
    return texts


def draw(name: str, texts: list[str], n_texts: int, seed: int) -> TextSet:
    """Draw texts at random without replacement; the same seed draws the same texts."""
    if not texts:
        raise ValueError(f"the text set {name!r} is empty")
    if n_texts > len(texts):
        raise ValueError(
            f"dataset.n_texts={n_texts}, but the text set {name!r} has only {len(texts)} texts"
        )
    order = np.random.default_rng(seed).permutation(len(texts))[:n_texts]
    return TextSet(name, tuple(texts[i] for i in order))

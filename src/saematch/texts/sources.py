"""Sources of texts: the embedded texts, and files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from saematch.core.errors import InputError
from saematch.core.files import PACKAGE, content_hash, expand_home
from saematch.core.specs import AtLeast1, Seed, Some, spec
from saematch.texts.folders import find_files
from saematch.texts.reading import Text, read_texts

log = logging.getLogger(__name__)

ZOO_TEXTS = PACKAGE / "zoo" / "texts"


@dataclass(frozen=True)
class TextSet:
    """The texts of one data set or of one kind."""

    name: str
    texts: tuple[str, ...]
    places: tuple[str, ...] = ()
    """File and line of each text, if it comes from a file."""

    def place(self, number: int) -> str:
        """Return the place of a text, for messages."""
        return self.places[number] if self.places else f"text {number} of the set {self.name!r}"


@runtime_checkable
class TextSource(Protocol):
    """Interface of every spec of texts."""

    n_texts: int | None
    max_tokens: int

    def resolve(self, memory: Path) -> TextSource:
        """Return the source with every data set at one exact version.

        Versions are noted in the folder ``memory`` and read from there if the hub does not answer.
        Raises ``InputError`` if a data set does not exist.
        """
        ...

    def described(self) -> dict[str, dict[str, Any]]:
        """Return everything that determines the texts of each set, if the source is resolved."""
        ...

    def load(self) -> list[TextSet]:
        """Draw the texts of every set; ``InputError`` if they cannot be read."""
        ...


@spec("dataset")
class ZooTexts:
    """Spec of the embedded held-out texts."""

    kinds: Some[str]
    """Kinds of texts: ``prose``, ``docs`` and ``code``."""
    n_texts: int
    """Number of texts of each kind, drawn at random without replacement; all if there are fewer."""
    max_tokens: int
    """Number of tokens, BOS included, after which a text is cut."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)

    def resolve(self, _memory: Path) -> ZooTexts:
        """Return the spec as it is: the texts come with the package."""
        return self

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the file of each kind, with a hash of its content, and how texts are drawn."""
        return by_name(
            (kind, {"path": f"zoo/{kind}", "sha256": content_hash([path]), **_drawn(self)})
            for kind, path in self._files()
        )

    def load(self) -> list[TextSet]:
        """Draw the texts; ``InputError`` if the zoo lacks a kind."""
        return [
            draw(kind, read_texts(path), self.n_texts, self.seed) for kind, path in self._files()
        ]

    def _files(self) -> list[tuple[str, Path]]:
        paths = {path.stem: path for path in sorted(ZOO_TEXTS.glob("*.jsonl"))}
        unknown = [kind for kind in self.kinds if kind not in paths]
        if unknown:
            raise InputError(
                f"the zoo has no texts of kind {unknown[0]!r}, only {', '.join(paths)}"
            )
        return [(kind, paths[kind]) for kind in self.kinds]


@spec("dataset")
class LocalTexts:
    """Spec of texts in the user's own files, one set for each path.

    JSON, JSON Lines, CSV, TSV, Parquet and Arrow files contain texts in the field ``column``. Any
    other file is plain text with an empty line between texts (``saematch.texts.reading``).
    """

    paths: Some[str]
    """Files, folders or patterns, such as ``data/web-*.parquet``. The files of a folder or pattern
    are one set (``saematch.texts.folders``)."""
    n_texts: int | None
    """Number of texts drawn from each set, at random without replacement, or all if a set has
    fewer; None for all, in the files' order."""
    max_tokens: int
    seed: Seed = 0
    column: str = "text"
    min_characters: AtLeast1 = 1
    """Minimum length of a text. Shorter texts are skipped."""

    def __post_init__(self) -> None:
        expand_home(self, "paths")
        check_sizes(self.n_texts, self.max_tokens)

    def resolve(self, _memory: Path) -> LocalTexts:
        """Return the spec as it is: files have no versions."""
        return self

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the files of each set, with a hash of their content, and how texts are drawn."""
        settings = {name: getattr(self, name) for name in ("column", "min_characters")}
        return by_name(
            (
                name,
                {"path": entry, "sha256": content_hash(files), **settings, **_drawn(self)},
            )
            for entry, name, files in self._files()
        )

    def load(self) -> list[TextSet]:
        """Draw the texts; ``InputError`` if a file is missing, damaged or has no texts."""
        sets = []
        for _, name, files in self._files():
            texts = (text for path in files for text in read_texts(path, self.column))
            long = [text for text in texts if len(text.content) >= self.min_characters]
            sets.append(draw(name, long, self.n_texts, self.seed))
        return sets

    def _files(self) -> list[tuple[str, str, list[Path]]]:
        return [(entry, *find_files(entry)) for entry in self.paths]


def by_name(descriptions: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the description of each text set; ``InputError`` if two sets have the same name."""
    described: dict[str, dict[str, Any]] = {}
    for name, description in descriptions:
        if name in described:
            raise InputError(f"two text sets have the same name ({name}): rename a file")
        described[name] = description
    return described


def _drawn(source: ZooTexts | LocalTexts) -> dict[str, Any]:
    return {"n_texts": source.n_texts, "seed": source.seed}


def check_sizes(n_texts: int | None, max_tokens: int) -> None:
    """Raise ``InputError`` if there would be no text, or no token to predict in a text."""
    if not isinstance(n_texts, int | None) or not isinstance(max_tokens, int):
        raise InputError(
            f"dataset.n_texts={n_texts} and dataset.max_tokens={max_tokens} must be whole numbers"
        )
    if n_texts is not None and n_texts < 1:
        raise InputError(f"dataset.n_texts={n_texts}: at least one text is needed")
    if max_tokens < 3:
        raise InputError(
            f"dataset.max_tokens={max_tokens}: at least 3 are needed, BOS and two tokens, since "
            "a token is predicted from the token before it, and BOS is excluded"
        )


def draw(name: str, texts: Sequence[Text], n_texts: int | None, seed: int) -> TextSet:
    """Draw texts at random without replacement; the same seed draws the same texts.

    If ``n_texts`` is None, all texts are returned in their order. If it exceeds their number, all
    are returned in random order. Raises ``InputError`` if there is no text.
    """
    if not texts:
        raise InputError(f"the text set {name!r} is empty")
    order: Iterable[int] = range(len(texts))
    if n_texts is not None:
        order = np.random.default_rng(seed).permutation(len(texts))[:n_texts]
    drawn = [texts[n] for n in order]
    return TextSet(name, tuple(text.content for text in drawn), tuple(text.place for text in drawn))


def warn_of_fewer(name: str, n_texts: int, requested: int | None) -> None:
    """Warn if a set has fewer texts than requested."""
    if requested is not None and n_texts < requested:
        log.warning(
            "dataset.n_texts=%d, but the text set %r has only %d: the run uses all of them",
            requested,
            name,
            n_texts,
        )

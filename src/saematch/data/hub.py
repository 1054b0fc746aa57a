"""Texts of data sets on the Hugging Face hub. The only file that knows ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from saematch.data.texts import TextSet, check_sizes

BUFFER = 10_000
"""Texts among which the next is drawn at random while a data set is read."""


@dataclass(frozen=True)
class HubSet:
    """Spec of one data set."""

    path: str
    """Name on the hub, or a folder in a hub's layout."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Commit; None for the newest."""


@dataclass(frozen=True)
class HubTexts:
    """Spec of the texts of several data sets, read no further than needed."""

    sets: Mapping[str, HubSet]
    """By the name that results give them."""
    n_texts: int
    max_tokens: int
    seed: int = 0
    min_characters: int = 200
    """Shorter texts, such as headings of WikiText, are passed over."""

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)

    def load(self) -> list[TextSet]:
        """Draw the texts; ``ValueError`` if a data set cannot be reached or has too few."""
        return [TextSet(name, tuple(self._draw(name, one))) for name, one in self.sets.items()]

    def _draw(self, name: str, one: HubSet) -> Sequence[str]:
        import datasets

        try:
            stream = datasets.load_dataset(
                one.path, one.config, split=one.split, revision=one.revision, streaming=True
            )
            shuffled = stream.shuffle(seed=self.seed, buffer_size=BUFFER)
            texts = (row[one.column] for row in shuffled)
            found = list(islice((t for t in texts if len(t) >= self.min_characters), self.n_texts))
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"cannot read the data set {one.path!r} ({_first_line(error)}); texts on disk are "
                "taken with dataset=local dataset.paths=[texts.jsonl]"
            ) from error
        if len(found) < self.n_texts:
            raise ValueError(
                f"dataset.n_texts={self.n_texts}, but the data set {name!r} has only {len(found)} "
                f"texts of at least {self.min_characters} characters"
            )
        return found


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

"""Texts of data sets on the Hugging Face hub. The only file that knows ``datasets``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from saematch.core.errors import InputError
from saematch.core.files import content_hash, expand_home, hashed
from saematch.core.specs import AtLeast1, Seed, Text, spec
from saematch.core.store import read_note, write_note
from saematch.texts.reading import check_text
from saematch.texts.sources import TextSet, check_sizes

log = logging.getLogger(__name__)

BUFFER = 10_000
"""Number of texts in the shuffle buffer, from which the next text is drawn."""
TIMEOUT = 30.0
"""Maximum time for the hub to name the newest commit, in seconds."""


@spec("dataset.sets")
class HubSet:
    """Spec of one data set on the hub."""

    path: Text
    """Name on the hub, or a folder with the layout of the hub."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Commit, tag or branch; None for the newest commit."""

    def __post_init__(self) -> None:
        expand_home(self, "path")

    def resolve(self, memory: Path) -> HubSet:
        """Return the data set at the commit that ``revision`` currently names.

        ``memory`` is the folder in which the commit is noted. If the hub does not answer, the noted
        commit is used; ``InputError`` if there is none.
        """
        if Path(self.path).is_dir() or re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        path = memory / f"{hashed([self.path, self.revision])}.json"
        try:
            info = HfApi().dataset_info(self.path, revision=self.revision, timeout=TIMEOUT)
        except (OSError, ValueError, HTTPError) as error:
            note = read_note(path)
            if note is None:
                raise self.unreadable(error) from error
            commit = note["commit"]
            log.warning(
                "%s: the hub gives no answer (%s), so the run uses commit %s, as the last run did",
                self.path,
                _first_line(error),
                commit,
            )
            return replace(self, revision=commit)
        write_note(path, {"path": self.path, "revision": self.revision, "commit": info.sha})
        return replace(self, revision=info.sha)

    def described(self) -> dict[str, Any]:
        """Return everything that determines the texts: for a folder, a hash of its content."""
        settings: dict[str, Any] = dict(vars(self))
        if Path(self.path).is_dir():
            files = sorted(path for path in Path(self.path).rglob("*") if path.is_file())
            settings["sha256"] = content_hash(files)
        return settings

    def texts(self, seed: int) -> Iterator[str]:
        """Yield the texts in random order; ``InputError`` if they cannot be read."""
        import datasets
        from huggingface_hub.errors import HTTPError

        try:
            stream = datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=True
            )
            for row in stream.shuffle(seed=seed, buffer_size=BUFFER):
                if self.column not in row:
                    raise InputError(
                        f"no column {self.column!r}, only {', '.join(row)}: set the column of this "
                        "set in dataset.sets"
                    )
                value = row[self.column]  # null is a text of no characters
                yield check_text("" if value is None else value, self.column, "one of its rows")
        except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
            raise self.unreadable(error) from error
        except RuntimeError as error:
            if "scripts" not in str(error):  # the error for a data set that is a program
                raise
            raise self.unreadable(error) from error

    def unreadable(self, error: BaseException) -> InputError:
        """Return an error with the reason, in one line, and what to do."""
        reason = _first_line(error)
        advice = "use texts on disk with dataset=local dataset.paths=[texts.jsonl]"
        if "scripts" in reason:
            advice = f"use the hub's Parquet copy with revision=refs/convert/parquet, or {advice}"
        if any(sign in reason for sign in ("gated", "401", "403")):
            page = "its page on the Hugging Face hub"
            advice = f"accept its conditions on {page} and set HF_TOKEN, or {advice}"
        return InputError(f"cannot read the data set {self.path!r} ({reason}); {advice}")


@spec("dataset")
class HubTexts:
    """Spec of texts of several data sets, of which no more than needed is read."""

    sets: Mapping[str, HubSet]
    """Data sets by their name in results."""
    n_texts: int | None
    """Number of texts drawn from each set; all if a set has fewer."""
    max_tokens: int
    seed: Seed = 0
    min_characters: AtLeast1 = 200
    """Minimum length of a text. Shorter texts, such as headings of WikiText, are skipped."""

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)
        if self.n_texts is None:
            raise InputError(
                "dataset.n_texts=null would read whole data sets of the hub: give a number"
            )

    def resolve(self, memory: Path) -> HubTexts:
        """Return the spec with every data set at one commit; ``InputError`` if it is unknown."""
        sets = {name: data_set.resolve(memory) for name, data_set in self.sets.items()}
        return replace(self, sets=sets)

    def described(self) -> dict[str, dict[str, Any]]:
        """Return everything that determines the texts of each set, and the library's version."""
        drawn = {name: getattr(self, name) for name in ("n_texts", "seed", "min_characters")}
        drawn["datasets"] = version("datasets")
        return {name: {**data_set.described(), **drawn} for name, data_set in self.sets.items()}

    def load(self) -> list[TextSet]:
        """Draw the texts; ``InputError`` if a data set cannot be reached or has none."""
        return [TextSet(name, self._draw(name, data_set)) for name, data_set in self.sets.items()]

    def _draw(self, name: str, data_set: HubSet) -> tuple[str, ...]:
        long = (text for text in data_set.texts(self.seed) if len(text) >= self.min_characters)
        texts = tuple(islice(long, self.n_texts))
        if not texts:
            raise InputError(
                f"the data set {name!r} has no text of at least {self.min_characters} characters: "
                "lower dataset.min_characters"
            )
        return texts


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

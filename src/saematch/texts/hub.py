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
"""Texts among which the next is drawn at random while a data set is read."""
TIMEOUT = 30.0
"""Seconds in which the hub has to say which commit is the newest."""


@spec("dataset.sets")
class HubSet:
    """Spec of one data set."""

    path: Text
    """Name on the hub, or a folder in a hub's layout."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Commit, tag or branch; None for the newest commit."""

    def __post_init__(self) -> None:
        expand_home(self, "path")

    def resolve(self, memory: Path) -> HubSet:
        """Return the same at the commit that ``revision`` stands for now.

        If the hub cannot be asked, it is the commit of the last time that it could be, as noted in
        ``memory``; ``InputError`` if there was none.
        """
        if Path(self.path).is_dir() or re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        noted = memory / f"{hashed([self.path, self.revision])}.json"
        try:
            found = HfApi().dataset_info(self.path, revision=self.revision, timeout=TIMEOUT)
        except (OSError, ValueError, HTTPError) as error:
            note = read_note(noted)
            if note is None:
                raise self.unreadable(error) from error
            commit = note["commit"]
            log.warning(
                "%s is taken at commit %s, as last time, since the hub gives no answer (%s)",
                self.path,
                commit,
                _first_line(error),
            )
            return replace(self, revision=commit)
        write_note(noted, {"path": self.path, "revision": self.revision, "commit": found.sha})
        return replace(self, revision=found.sha)

    def described(self) -> dict[str, Any]:
        """Return all that determines its texts; of a folder, the content stands for the commit."""
        about: dict[str, Any] = dict(vars(self))
        if Path(self.path).is_dir():
            files = sorted(path for path in Path(self.path).rglob("*") if path.is_file())
            about["sha256"] = content_hash(files)
        return about

    def texts(self, seed: int) -> Iterator[str]:
        """Read the texts in random order; ``InputError`` if they cannot be read."""
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
            if "scripts" not in str(error):  # of a data set that is a program
                raise
            raise self.unreadable(error) from error

    def unreadable(self, error: BaseException) -> InputError:
        """Return the error that says in one line why it cannot be read and what to do."""
        reason = _first_line(error)
        advice = "texts on disk are taken with dataset=local dataset.paths=[texts.jsonl]"
        if "scripts" in reason:
            advice = f"the hub's own Parquet copy is at revision=refs/convert/parquet; {advice}"
        if any(sign in reason for sign in ("gated", "401", "403")):
            page = "its page of the Hugging Face hub"
            advice = f"accept its conditions on {page} and set HF_TOKEN; {advice}"
        return InputError(f"cannot read the data set {self.path!r} ({reason}); {advice}")


@spec("dataset")
class HubTexts:
    """Spec of the texts of several data sets, read no further than needed."""

    sets: Mapping[str, HubSet]
    """By the name that results give them."""
    n_texts: int | None
    """Number of texts drawn from each set; all if a set has fewer."""
    max_tokens: int
    seed: Seed = 0
    min_characters: AtLeast1 = 200
    """Shorter texts, such as headings of WikiText, are passed over."""

    def __post_init__(self) -> None:
        check_sizes(self.n_texts, self.max_tokens)
        if self.n_texts is None:
            raise InputError(
                "dataset.n_texts=null would read whole data sets of the hub: give a number"
            )

    def resolve(self, memory: Path) -> HubTexts:
        """Return the same with every data set at one commit; ``InputError`` if it has none."""
        return replace(self, sets={name: one.resolve(memory) for name, one in self.sets.items()})

    def described(self) -> dict[str, dict[str, Any]]:
        """Return all that determines the texts of each set: the library draws them."""
        drawn = {name: getattr(self, name) for name in ("n_texts", "seed", "min_characters")}
        drawn["datasets"] = version("datasets")
        return {name: {**one.described(), **drawn} for name, one in self.sets.items()}

    def load(self) -> list[TextSet]:
        """Draw the texts; ``InputError`` if a data set cannot be reached or has none."""
        return [TextSet(name, self._draw(name, one)) for name, one in self.sets.items()]

    def _draw(self, name: str, one: HubSet) -> tuple[str, ...]:
        long = (text for text in one.texts(self.seed) if len(text) >= self.min_characters)
        found = tuple(islice(long, self.n_texts))
        if not found:
            raise InputError(
                f"the data set {name!r} has no text of at least {self.min_characters} characters: "
                "lower dataset.min_characters"
            )
        return found


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

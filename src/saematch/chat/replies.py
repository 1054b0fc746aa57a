"""Every answer of an LLM, kept as soon as it comes; runs may share the file at the same time."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import NamedTuple

from saematch.chat.questions import Asked, Reply
from saematch.core.errors import InputError
from saematch.core.files import make_folder, unwritable

WAIT_SECONDS = 60.0
"""How long to wait for another process that writes."""
CLAIM_SECONDS = 900.0
"""After which a question that another machine's run claims may be asked all the same."""

_PERMISSIONS = "change its permissions, or choose another cache"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: ("another process writes into it; run the same command again",),
    sqlite3.SQLITE_READONLY: (_PERMISSIONS,),
    sqlite3.SQLITE_CANTOPEN: (_PERMISSIONS,),
}
"""By SQLite's error code: what helps; against all others, free space."""

_TABLES = """
create table if not exists replies (
    key text primary key, model text not null, prompt text not null, texts text not null,
    repeat integer not null, asked real not null, content text not null, refused integer not null,
    finish_reason text not null, tokens_in integer not null, tokens_out integer not null,
    served_by text not null);
create table if not exists claims (key text primary key, owner text not null, until real not null);
create table if not exists batches (
    name text primary key, model text not null, asked text not null, id text not null,
    owner text not null);
"""
_REPLY = ", ".join(field.name for field in fields(Reply))


class Batch(NamedTuple):
    """A batch of questions that was handed in and not fetched yet."""

    name: str
    """Our own name, which the server keeps with the batch."""
    asked: tuple[Asked, ...]
    id: str
    """The server's; empty until the server has answered, or if the run ended before."""
    owner: str
    """The process that handed it in."""


class ReplyStore:
    """One SQLite file of answers, by the hash of model, wording and texts.

    A claim says that a run is about to ask a question, so that another run waits instead of paying
    for it too. Claims of a process that is gone count for nothing. Raises ``InputError`` if the
    file is no such store, and ``FileError`` if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path = path
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        with self._open() as database:
            database.executescript(_TABLES)

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """Return the answers that are there."""
        found = {}
        with self._open() as database:
            for some in _some(keys):
                marks = ", ".join("?" * len(some))
                rows = database.execute(
                    f"select key, {_REPLY} from replies where key in ({marks})", some
                )
                for key, content, refused, *rest in rows:
                    found[key] = Reply(content, bool(refused), *rest)
        return found

    def keep(self, model: str, answers: Iterable[tuple[Asked, Reply]]) -> None:
        """Keep answers, and give up the claims to their questions."""
        now = time.time()
        with self._open() as database, database:
            for asked, reply in answers:
                about = (asked.key, model, asked.prompt, json.dumps(asked.texts), asked.repeat)
                row = (*about, now, *astuple(reply))
                marks = ", ".join("?" * len(row))
                database.execute(f"insert or ignore into replies values ({marks})", row)
                database.execute("delete from claims where key = ?", (asked.key,))

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Return those of the questions that are now this run's to ask."""
        now = time.time()
        mine = set()
        with self._open() as database, database:
            database.execute("begin immediate")
            for key in keys:
                claims = database.execute("select owner, until from claims where key = ?", (key,))
                claim = claims.fetchone()
                known = database.execute("select 1 from replies where key = ?", (key,)).fetchone()
                if known or (claim and self._stands(claim, now)):
                    continue
                row = (key, self.owner, now + CLAIM_SECONDS)
                database.execute("insert or replace into claims values (?, ?, ?)", row)
                mine.add(key)
        return mine

    def _stands(self, claim: tuple[str, float], now: float) -> bool:
        owner, until = claim
        return until >= now and self.is_other(owner)

    def is_other(self, owner: str) -> bool:
        """Whether that is another process, still there; on another machine it counts as there."""
        host, _, process = owner.rpartition(":")
        if owner == self.owner:
            return False
        if host != socket.gethostname():
            return True
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's process: it is there
        return True

    def release(self, keys: Sequence[str]) -> None:
        """Give up this run's claims to questions that it will not ask."""
        with self._open() as database, database:
            for key in keys:
                about = (key, self.owner)
                database.execute("delete from claims where key = ? and owner = ?", about)

    def batches(self, model: str) -> list[Batch]:
        """Return the batches that wait to be fetched."""
        with self._open() as database:
            rows = database.execute(
                "select name, asked, id, owner from batches where model = ?", (model,)
            )
            return [Batch(name, _asked(some), *rest) for name, some, *rest in rows]

    def note_batch(self, model: str, batch: Batch) -> None:
        """Note a batch, before it is handed in and again when the server has named it."""
        with self._open() as database, database:
            row = (batch.name, model, json.dumps(batch.asked), batch.id, batch.owner)
            database.execute("insert or replace into batches values (?, ?, ?, ?, ?)", row)

    def drop_batch(self, name: str) -> None:
        """Forget a batch that was fetched or that failed."""
        with self._open() as database, database:
            database.execute("delete from batches where name = ?", (name,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as database:
                yield database
        except sqlite3.OperationalError as error:
            kind = error.sqlite_errorcode & 0xFF
            raise unwritable(self.path, str(error), *_REMEDIES.get(kind, ())) from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is no store of answers ({error}); move it away to begin a new one"
            ) from error


def _asked(text: str) -> tuple[Asked, ...]:
    some = json.loads(text)
    return tuple(Asked(key, prompt, tuple(texts), n) for key, prompt, texts, n in some)


def _some(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """Yield the keys in parts that fit into one statement."""
    return (keys[start : start + 500] for start in range(0, len(keys), 500))

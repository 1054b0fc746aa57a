"""Storage of every answer of an LLM; several runs may use the file at the same time."""

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

from saematch.chat.questions import QuestionRecord, Reply
from saematch.core.errors import InputError
from saematch.core.files import make_folder, unwritable

WAIT_SECONDS = 60.0
"""Seconds to wait for another process that is writing."""
CLAIM_SECONDS = 900.0
"""Seconds after which a claim of a run on another machine expires."""

_PERMISSIONS = "change its permissions, or choose another cache"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: ("another process writes into it; run the same command again",),
    sqlite3.SQLITE_READONLY: (_PERMISSIONS,),
    sqlite3.SQLITE_CANTOPEN: (_PERMISSIONS,),
}
"""Advice by SQLite's error code. For other codes the advice is to free space."""

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
    """A batch of questions that was submitted and whose answers were not fetched yet."""

    name: str
    """Name that we give the batch; the server stores it."""
    questions: tuple[QuestionRecord, ...]
    id: str
    """Id on the server; empty if the run has not received it."""
    owner: str
    """Host and process that submitted the batch."""


class ReplyStore:
    """An SQLite file of answers, by the hash of model, wording and texts.

    A run claims a question before it asks it, so that other runs wait instead of paying for it too.
    Claims of ended processes are ignored. Raises ``InputError`` if the file is not such a store,
    and ``FileError`` if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path = path
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        with self._open() as database:
            database.executescript(_TABLES)

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """Return the stored answers, by key."""
        replies = {}
        with self._open() as database:
            for part in _parts(keys):
                marks = ", ".join("?" * len(part))
                rows = database.execute(
                    f"select key, {_REPLY} from replies where key in ({marks})", part
                )
                for key, content, refused, *rest in rows:
                    replies[key] = Reply(content, bool(refused), *rest)
        return replies

    def keep(self, model: str, answers: Iterable[tuple[QuestionRecord, Reply]]) -> None:
        """Store answers and release the claims to their questions."""
        now = time.time()
        with self._open() as database, database:
            for question, reply in answers:
                texts = json.dumps(question.texts)
                columns = (question.key, model, question.prompt, texts, question.repeat)
                row = (*columns, now, *astuple(reply))
                marks = ", ".join("?" * len(row))
                database.execute(f"insert or ignore into replies values ({marks})", row)
                database.execute("delete from claims where key = ?", (question.key,))

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Claim questions; return the keys of those that this run must ask."""
        now = time.time()
        claimed = set()
        with self._open() as database, database:
            database.execute("begin immediate")
            for key in keys:
                claims = database.execute("select owner, until from claims where key = ?", (key,))
                claim = claims.fetchone()
                reply = database.execute("select 1 from replies where key = ?", (key,)).fetchone()
                if reply or (claim and self._is_valid(claim, now)):
                    continue
                row = (key, self.owner, now + CLAIM_SECONDS)
                database.execute("insert or replace into claims values (?, ?, ?)", row)
                claimed.add(key)
        return claimed

    def _is_valid(self, claim: tuple[str, float], now: float) -> bool:
        owner, until = claim
        return until >= now and self.is_other(owner)

    def is_other(self, owner: str) -> bool:
        """Return whether ``owner`` is another running process, or one on another machine."""
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
            pass  # it runs for another user
        return True

    def release(self, keys: Sequence[str]) -> None:
        """Release this run's claims to questions that it will not ask."""
        with self._open() as database, database:
            for key in keys:
                claim = (key, self.owner)
                database.execute("delete from claims where key = ? and owner = ?", claim)

    def batches(self, model: str) -> list[Batch]:
        """Return the batches whose answers were not fetched yet."""
        with self._open() as database:
            rows = database.execute(
                "select name, asked, id, owner from batches where model = ?", (model,)
            )
            return [Batch(name, _questions(text), *rest) for name, text, *rest in rows]

    def note_batch(self, model: str, batch: Batch) -> None:
        """Store a batch before it is submitted, and again when the server has returned its id."""
        with self._open() as database, database:
            row = (batch.name, model, json.dumps(batch.questions), batch.id, batch.owner)
            database.execute("insert or replace into batches values (?, ?, ?, ?, ?)", row)

    def drop_batch(self, name: str) -> None:
        """Remove a batch whose answers were fetched or that failed."""
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
                f"{self.path} is not a store of answers ({error}); move it away to start a new one"
            ) from error


def _questions(text: str) -> tuple[QuestionRecord, ...]:
    rows = json.loads(text)
    return tuple(QuestionRecord(key, prompt, tuple(texts), n) for key, prompt, texts, n in rows)


def _parts(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """Return the keys in parts that fit into one SQL statement."""
    return (keys[start : start + 500] for start in range(0, len(keys), 500))

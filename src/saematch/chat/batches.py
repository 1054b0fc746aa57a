"""The Batch API: questions submitted as a file and answered within a day at half the price."""

from __future__ import annotations

import io
import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saematch.chat.asking import AskingError, Chat
from saematch.chat.client import OPTIONAL, OpenAiServer, read_completion, read_refusal
from saematch.chat.questions import Question, QuestionRecord, Reply
from saematch.chat.replies import Batch
from saematch.core.files import parse_json
from saematch.core.progress import Bar

if TYPE_CHECKING:
    from openai.types import Batch as ServerBatch

log = logging.getLogger(__name__)

BATCH_SIZE = 10_000
"""Largest number of questions in a file."""
POLL_SECONDS = 20.0
"""Seconds between checks of the batches."""
ENDED = ("completed", "failed", "expired", "cancelled")
OURS = "saematch"
"""Key of our name for a batch in its metadata on the server."""


class Batches:
    """Submits batches and fetches their answers; stores each batch first, so that none runs
    twice."""

    def __init__(self, chat: Chat, server: OpenAiServer) -> None:
        self.chat, self.server, self.client = chat, server, server.client
        self.failed: list[str] = []
        """Messages of the server about questions that it did not answer."""

    def run(self, questions: Sequence[Question], bar: Bar) -> None:
        """Return when every question is answered or was submitted by another run.

        Raises ``AskingError`` if a batch or questions failed; the other answers are stored.
        """
        import openai

        self.failed = []
        try:
            self._find_lost()
            if self.chat.spec.batch:
                self._submit(questions)
            keys = {question.key(self.chat.model) for question in questions}
            while ours := self._waiting(keys):
                ended = [self._fetch(batch, bar) for batch in ours]
                if not any(ended):
                    time.sleep(POLL_SECONDS)
        except openai.NotFoundError:
            raise AskingError(
                f"{self.chat.spec.base_url} has no Batch API: set judge.batch=false"
            ) from None
        except openai.APIStatusError as error:
            raise self.server.refused(error) from None
        except openai.APIConnectionError as error:
            reason = self.server.scrubbed(error)
            raise AskingError(
                f"lost the connection to {self.chat.spec.base_url} ({reason}); the batches remain"
            ) from None
        if self.failed:
            raise AskingError(
                f"{len(self.failed)} questions of a batch were not answered (the first: "
                f"{self.failed[0]}); all other answers are stored, and the same command submits "
                "these questions again"
            )

    def _waiting(self, keys: set[str]) -> list[Batch]:
        batches = self.chat.store.batches(self.chat.model)
        return [b for b in batches if any(question.key in keys for question in b.questions)]

    def _find_lost(self) -> None:
        """Find batches on the server whose id a killed run did not store."""
        store = self.chat.store
        noted = [batch for batch in store.batches(self.chat.model) if not batch.id]
        lost = {batch.name: batch for batch in noted if not store.is_other(batch.owner)}
        if not lost:
            return
        for on_server in self.client.batches.list(limit=100):
            batch = lost.pop((on_server.metadata or {}).get(OURS, ""), None)
            if batch is not None:
                self.chat.store.note_batch(self.chat.model, batch._replace(id=on_server.id))
        for name in lost:
            self.chat.store.drop_batch(name)

    def _submit(self, questions: Sequence[Question]) -> None:
        chat = self.chat
        waiting = self._noted()
        by_key = {question.key(chat.model): question for question in questions}
        keys = chat.store.claim([key for key in by_key if key not in waiting])
        taken = self._noted()  # another run may have submitted some in the meantime
        free = [by_key[key] for key in by_key if key in keys - taken]
        try:
            self._check_caps(free)
            for start in range(0, len(free), BATCH_SIZE):
                self._submit_part(free[start : start + BATCH_SIZE])
        finally:  # a stored batch replaces the claims
            chat.store.release(list(keys))

    def _noted(self) -> set[str]:
        batches = self.chat.store.batches(self.chat.model)
        return {question.key for batch in batches for question in batch.questions}

    def _check_caps(self, questions: Sequence[Question]) -> None:
        chat, limits = self.chat, self.chat.spec.limits
        if not questions:
            return
        cost = chat.estimate(questions)[2]
        if limits.max_cost is not None and chat.spent.cost + cost > limits.max_cost:
            raise AskingError(
                f"a batch of {len(questions)} questions may cost ${cost:.2f}, more than "
                f"judge.limits.max_cost={limits.max_cost} leaves: raise it, or set judge.batch="
                "false, which stops at the limit; nothing was submitted"
            )
        if limits.max_requests is not None and (
            chat.spent.requests + len(questions) > limits.max_requests
        ):
            raise AskingError(
                f"a batch of {len(questions)} questions is more than judge.limits.max_requests="
                f"{limits.max_requests} leaves; nothing was submitted"
            )

    def _submit_part(self, questions: Sequence[Question]) -> None:
        model, store = self.chat.model, self.chat.store
        records = tuple(question.record(model) for question in questions)
        batch = Batch(uuid.uuid4().hex, records, "", store.owner)
        lines = [
            {
                "custom_id": question.key(model),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self.server.body(model, question),
            }
            for question in questions
        ]
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = self.client.files.create(
            file=(f"{batch.name}.jsonl", io.BytesIO(content)), purpose="batch"
        )
        store.note_batch(model, batch)
        on_server = self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={OURS: batch.name},
        )
        store.note_batch(model, batch._replace(id=on_server.id))
        self.chat.spent.requests += len(questions)
        log.info("batch %s: %d questions submitted", on_server.id, len(questions))

    def _fetch(self, batch: Batch, bar: Bar) -> bool:
        """Fetch the answers of a batch that has ended; return whether it has."""
        if not batch.id:  # another run is submitting it
            return False
        on_server = self.client.batches.retrieve(batch.id)
        if on_server.status not in ENDED:
            counts, n_questions = on_server.request_counts, len(batch.questions)
            done = counts.completed if counts else 0
            bar.remark(f"batch {on_server.status}, {done} of {n_questions} answered")
            return False
        by_key = {question.key: question for question in batch.questions}
        answered = self._keep(on_server, by_key, bar)
        self.chat.store.drop_batch(batch.name)
        if answered < len(batch.questions) and not self.failed:
            errors = (on_server.errors and on_server.errors.data) or ()
            message = "; ".join(error.message or "" for error in errors)
            failure = f"batch {on_server.status} {message}".strip()
            self.failed += [failure] * (len(by_key) - answered)
        return True

    def _keep(self, on_server: ServerBatch, by_key: dict[str, QuestionRecord], bar: Bar) -> int:
        """Store the answers of an ended batch; return their number."""
        answered = 0
        for file_id in filter(None, (on_server.output_file_id, on_server.error_file_id)):
            answers = []
            for line in self.client.files.content(file_id).text.splitlines():
                row: dict[str, Any] = parse_json(line)
                response = row.get("response") or {}
                reply = self._read(response, row.get("error"))
                if reply is not None and row["custom_id"] in by_key:
                    answers.append((by_key[row["custom_id"]], reply, 0))
            self.chat.keep(answers)
            answered += len(answers)
            bar.advance(len(answers))
        return answered

    def _read(self, response: dict[str, Any], error: dict[str, Any] | None) -> Reply | None:
        """Return the reply in a line of a batch; None if it failed, which ``failed`` notes."""
        body = response.get("body") or {}
        if response.get("status_code") == 200:
            try:
                return read_completion(body)
            except (AttributeError, TypeError):
                error = {"message": "the reply was not an answer"}
        error = error or body.get("error") or {}
        message = str(error.get("message") or error)
        refused = response.get("status_code") == 400
        reply = read_refusal(error.get("code"), message) if refused else None
        if reply is None:
            self.server.give_up(dict.fromkeys(OPTIONAL), message)  # a later start asks it again
            self.failed.append(message[:200])
        return reply

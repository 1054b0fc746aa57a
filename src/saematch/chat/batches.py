"""The Batch API: questions handed in as a file, answers fetched within a day at half the price."""

from __future__ import annotations

import io
import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from saematch.chat.asking import AskingError, Chat
from saematch.chat.client import OPTIONAL, OpenAiServer, read_completion, read_refusal
from saematch.chat.questions import Asked, Question, Reply
from saematch.chat.replies import Batch
from saematch.core.files import parse_json

if TYPE_CHECKING:
    from openai.types import Batch as ServerBatch

log = logging.getLogger(__name__)

BATCH_SIZE = 10_000
"""Questions in one file."""
POLL_SECONDS = 20.0
"""Between looks at the batches."""
ENDED = ("completed", "failed", "expired", "cancelled")
OURS = "saematch"
"""Key of our own name among what the server keeps with a batch."""


class Batches:
    """Hands in, waits and fetches; what was handed in is noted first, so that nothing is twice."""

    def __init__(self, chat: Chat, server: OpenAiServer) -> None:
        self.chat, self.server, self.client = chat, server, server.client
        self.failed: list[str] = []
        """What the server said of questions that it did not answer."""

    def run(self, questions: Sequence[Question], bar: tqdm) -> None:
        """Return when every question is answered, or was handed in by another run.

        Raises ``AskingError`` for a batch or questions that failed; the other answers are kept.
        """
        import openai

        self.failed = []
        try:
            self._find_lost()
            if self.chat.spec.batch:
                self._hand_in(questions)
            asked = {question.key(self.chat.model) for question in questions}
            while ours := self._waiting(asked):
                ended = [self._fetch(batch, bar) for batch in ours]
                if not any(ended):
                    time.sleep(POLL_SECONDS)
        except openai.NotFoundError:
            raise AskingError(
                f"{self.chat.spec.base_url} has no Batch API: take judge.batch=false"
            ) from None
        except openai.APIStatusError as error:
            raise self.server.refused(error) from None
        except openai.APIConnectionError as error:
            said = self.server.scrubbed(error)
            raise AskingError(f"lost {self.chat.spec.base_url} ({said}); batches wait") from None
        if self.failed:
            raise AskingError(
                f"{len(self.failed)} questions of a batch were not answered (the first: "
                f"{self.failed[0]}); all other answers are kept, the same command hands them in "
                "again"
            )

    def _waiting(self, asked: set[str]) -> list[Batch]:
        batches = self.chat.store.batches(self.chat.model)
        return [b for b in batches if any(one.key in asked for one in b.asked)]

    def _find_lost(self) -> None:
        """Find at the server what a killed run handed in without having kept its id."""
        store = self.chat.store
        noted = [batch for batch in store.batches(self.chat.model) if not batch.id]
        lost = {batch.name: batch for batch in noted if not store.is_other(batch.owner)}
        if not lost:
            return
        for there in self.client.batches.list(limit=100):
            batch = lost.pop((there.metadata or {}).get(OURS, ""), None)
            if batch is not None:
                self.chat.store.note_batch(self.chat.model, batch._replace(id=there.id))
        for name in lost:
            self.chat.store.drop_batch(name)

    def _hand_in(self, questions: Sequence[Question]) -> None:
        chat = self.chat
        waiting = self._noted()
        by_key = {question.key(chat.model): question for question in questions}
        keys = chat.store.claim([key for key in by_key if key not in waiting])
        taken = self._noted()  # another run may have handed some in between
        left = [by_key[key] for key in by_key if key in keys - taken]
        try:
            self._check_caps(left)
            for start in range(0, len(left), BATCH_SIZE):
                self._hand_in_part(left[start : start + BATCH_SIZE])
        finally:  # a noted batch stands in the claims' place
            chat.store.release(list(keys))

    def _noted(self) -> set[str]:
        batches = self.chat.store.batches(self.chat.model)
        return {asked.key for batch in batches for asked in batch.asked}

    def _check_caps(self, questions: Sequence[Question]) -> None:
        chat, limits = self.chat, self.chat.spec.limits
        if not questions:
            return
        cost = chat.estimate(questions)[2]
        if limits.max_cost is not None and chat.spent.cost + cost > limits.max_cost:
            raise AskingError(
                f"a batch of {len(questions)} questions may cost ${cost:.2f}, more than "
                f"judge.limits.max_cost={limits.max_cost} leaves: raise it, or take judge.batch="
                "false, which stops at the cap; nothing was handed in"
            )
        if limits.max_requests is not None and (
            chat.spent.requests + len(questions) > limits.max_requests
        ):
            raise AskingError(
                f"a batch of {len(questions)} questions is more than judge.limits.max_requests="
                f"{limits.max_requests} leaves; nothing was handed in"
            )

    def _hand_in_part(self, questions: Sequence[Question]) -> None:
        model, store = self.chat.model, self.chat.store
        asked = tuple(question.asked(model) for question in questions)
        batch = Batch(uuid.uuid4().hex, asked, "", store.owner)
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
        there = self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={OURS: batch.name},
        )
        store.note_batch(model, batch._replace(id=there.id))
        self.chat.spent.requests += len(questions)
        log.info("batch %s: %d questions handed in", there.id, len(questions))

    def _fetch(self, batch: Batch, bar: tqdm) -> bool:
        """Fetch the answers of a batch that has ended; return whether it has."""
        if not batch.id:  # another run is just handing it in
            return False
        there = self.client.batches.retrieve(batch.id)
        if there.status not in ENDED:
            done = there.request_counts.completed if there.request_counts else 0
            bar.set_postfix_str(f"batch {there.status}, {done} of {len(batch.asked)} answered")
            return False
        by_key = {asked.key: asked for asked in batch.asked}
        answered = self._keep(there, by_key, bar)
        self.chat.store.drop_batch(batch.name)
        if answered < len(batch.asked) and not self.failed:
            said = "; ".join(e.message or "" for e in (there.errors and there.errors.data) or ())
            self.failed += [f"batch {there.status} {said}".strip()] * (len(by_key) - answered)
        return True

    def _keep(self, there: ServerBatch, by_key: dict[str, Asked], bar: tqdm) -> int:
        """Keep the answers of an ended batch; return how many there were."""
        answered = 0
        for file_id in filter(None, (there.output_file_id, there.error_file_id)):
            answers = []
            for line in self.client.files.content(file_id).text.splitlines():
                row: dict[str, Any] = parse_json(line)
                response = row.get("response") or {}
                reply = self._read(response, row.get("error"))
                if reply is not None and row["custom_id"] in by_key:
                    answers.append((by_key[row["custom_id"]], reply, 0))
            self.chat.keep(answers)
            answered += len(answers)
            bar.update(len(answers))
        return answered

    def _read(self, response: dict[str, Any], error: dict[str, Any] | None) -> Reply | None:
        """Return what a line of a batch says; None, and a note of it, where it failed."""
        body = response.get("body") or {}
        if response.get("status_code") == 200:
            try:
                return read_completion(body)
            except (AttributeError, TypeError):
                error = {"message": "what came was no answer"}
        error = error or body.get("error") or {}
        said = str(error.get("message") or error)
        reply = (
            read_refusal(error.get("code"), said) if response.get("status_code") == 400 else None
        )
        if reply is None:
            self.server.give_up(dict.fromkeys(OPTIONAL), said)  # for the next start
            self.failed.append(said[:200])
        return reply

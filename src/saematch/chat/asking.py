"""Many questions to an LLM, with stored answers, so that no question is paid for twice."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

from saematch.chat.model import ChatModel
from saematch.chat.questions import Judge, Question, QuestionRecord, Reply
from saematch.chat.replies import ReplyStore
from saematch.core.background import ENDING_SECONDS, in_background
from saematch.core.errors import InputError
from saematch.core.progress import Bar, duration, progress

log = logging.getLogger(__name__)

LOST_IN_A_ROW = 20
"""Number of consecutive requests without an answer after which the run stops asking."""
SIGN_SECONDS = 5.0
"""Seconds without an answer after which the bar shows how long the run has been waiting."""
POLL_SECONDS = 1.0
"""Seconds between checks for answers to questions of another run."""


class AskingError(InputError):
    """A reason to stop asking; the answers so far are stored."""


@runtime_checkable
class Endpoint(Protocol):
    """Server that answers questions."""

    def complete(self, model: str, question: Question) -> Reply:
        """Answer one question.

        Raises ``AskingError`` if the server will answer no question, and ``TimeoutError`` if there
        is no answer to this one after all retries.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class BatchRunner(Protocol):
    """Runner that submits questions as files and fetches the answers."""

    def run(self, questions: Sequence[Question], bar: Bar) -> None:
        """Return when every question is answered or was submitted by another run."""
        ...


@dataclass
class Spent:
    """Requests, tokens and cost since this start of the run."""

    requests: int = 0
    cost: float = 0.0
    """Cost of this start in dollars."""
    tokens_in: int = 0
    tokens_out: int = 0
    reused: int = 0
    """Number of answers that were already stored."""


class Chat(Judge):
    """An LLM of a run, with the stored answers of all runs and its limits."""

    writes: ClassVar[bool] = True
    remark: ClassVar[str] = ""

    def __init__(
        self, spec: ChatModel, model: str, endpoint: Endpoint | None, store: ReplyStore
    ) -> None:
        self.spec, self.model, self.endpoint, self.store = spec, model, endpoint, store
        self.batches: BatchRunner | None = None
        """Batch API of the server; None if it is not used."""
        self.spent = Spent()
        self._served_by: dict[str, str] = {}
        """Model name that the server states, by the key of every answer that was used."""

    def ask(self, questions: Sequence[Question], noun: str) -> dict[Question, Reply]:
        """Return the answers; with ``cached_only``, only stored answers.

        ``noun`` is the name of the answers in messages, in the plural. Raises ``AskingError`` if a
        limit is reached or the server does not answer; a later call continues.
        """
        by_key = {question.key(self.model): question for question in questions}
        replies = self.store.find(list(by_key))
        unanswered = [question for key, question in by_key.items() if key not in replies]
        self.spent.reused += len(replies.keys() - self._served_by.keys())
        if unanswered and self.endpoint is not None:
            self._announce(noun, len(by_key), unanswered)
            _Round(self, noun).run(unanswered)
            replies = self.store.find(list(by_key))
        self._served_by |= {key: reply.served_by for key, reply in replies.items()}
        return {by_key[key]: reply for key, reply in replies.items()}

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Return estimated input tokens, the largest number of output tokens, and dollars."""
        counts = [question.tokens() for question in questions]
        tokens_in, tokens_out = sum(n for n, _ in counts), sum(n for _, n in counts)
        return tokens_in, tokens_out, self.spec.cost(tokens_in, tokens_out)

    def room(self, pending: Sequence[Question]) -> str:
        """Return the limit that the next question may exceed; empty if there is room for it.

        ``pending`` are the questions of running requests and the next one.
        """
        limits = self.spec.limits
        if limits.max_requests is not None and self.spent.requests >= limits.max_requests:
            return f"judge.limits.max_requests={limits.max_requests}"
        if limits.max_cost is None or (
            self.spent.cost + self.estimate(pending)[2] <= limits.max_cost
        ):
            return ""
        return f"judge.limits.max_cost={limits.max_cost}"

    def keep(self, answers: Sequence[tuple[QuestionRecord, Reply, int]]) -> None:
        """Store answers that arrived together in one write, and count their tokens and cost.

        The third entry of an answer is an estimate of the tokens of its question, which is used if
        the server does not count them.
        """
        counted = []
        for question, reply, tokens_in in answers:
            if not reply.tokens_in and not reply.refused:
                reply = replace(reply, tokens_in=tokens_in, tokens_out=len(reply.content) // 4)
            counted.append((question, reply))
        self.store.keep(self.model, counted)
        for _, reply in counted:
            self.spent.tokens_in += reply.tokens_in
            self.spent.tokens_out += reply.tokens_out
            self.spent.cost += self.spec.cost(reply.tokens_in, reply.tokens_out)

    def close(self) -> None:
        """Close the connections."""
        if self.endpoint is not None:
            self.endpoint.close()

    def provenance(self) -> dict[str, Any]:
        """Return the model, its server, and the number and cost of requests."""
        return {
            "model": self.model,
            "base_url": self.spec.base_url,
            "served_by": dict(Counter(self._served_by.values())),
            **vars(self.spent),
        }

    def _announce(self, noun: str, total: int, unanswered: Sequence[Question]) -> None:
        tokens_in, tokens_out, cost = self.estimate(unanswered)
        n = len(unanswered)
        log.info(
            "%s by %s: %d in total, %d stored, %d to ask: about %s tokens in and at most %s out%s",
            noun, self.model, total, total - n, n, f"{tokens_in:,}",
            f"{tokens_out:,}", f", at most ${cost:.2f}" if cost else "",
        )  # fmt: skip
        cap = self.spec.limits.max_cost
        if cap is not None and cost > cap - self.spent.cost:
            log.warning(
                "this may stop at judge.limits.max_cost=%s; the same command continues later", cap
            )


class _Round:
    """One call of ``Chat.ask``: concurrent requests, stored answers and limits."""

    def __init__(self, chat: Chat, noun: str) -> None:
        self.chat, self.noun = chat, noun
        self.running: dict[Future[Reply], Question] = {}
        self.lost: list[Question] = []
        self.in_a_row = 0
        self.stop: BaseException | None = None
        self.last = ""

    def run(self, questions: Sequence[Question]) -> None:
        """Ask until every question is answered; waits for questions that another run asks."""
        chat = self.chat
        unanswered = list(questions)
        with progress(self.noun, len(unanswered), "answer") as bar:
            while unanswered:
                if chat.batches and (chat.spec.batch or self._in_batches(unanswered)):
                    chat.batches.run(unanswered, bar)
                else:
                    self._ask(unanswered, bar)
                replies = chat.store.find([question.key(chat.model) for question in unanswered])
                unanswered = [q for q in unanswered if q.key(chat.model) not in replies]
                self._raise_if_stopped(len(unanswered), len(questions))
                if unanswered:
                    bar.remark(f"{len(unanswered)} asked by another run")
                    time.sleep(POLL_SECONDS)

    def _in_batches(self, questions: Sequence[Question]) -> bool:
        """Return whether some of the questions were submitted in a batch that is still stored."""
        batches = self.chat.store.batches(self.chat.model)
        waiting = {question.key for batch in batches for question in batch.questions}
        return any(question.key(self.chat.model) in waiting for question in questions)

    def _raise_if_stopped(self, n_unanswered: int, n_questions: int) -> None:
        """Raise the error that stopped the round, with the number of stored answers."""
        stored = f"{n_questions - n_unanswered} of {n_questions} answers are stored"
        if isinstance(self.stop, AskingError):
            raise AskingError(f"{self.stop}; {stored}, and the same command continues") from None
        if self.stop is not None and not isinstance(self.stop, TimeoutError):
            raise self.stop
        if self.lost:
            raise AskingError(
                f"{len(self.lost)} requests to {self.chat.spec.base_url} were not answered after "
                f"{self.chat.spec.limits.retries} retries (last: {self.last}); {stored}, and the "
                "same command continues"
            )

    def _ask(self, questions: Sequence[Question], bar: Bar) -> None:
        limits = self.chat.spec.limits
        waiting = deque(questions)
        claimed: deque[Question] = deque()
        answered = time.monotonic()
        try:
            while True:
                while self.stop is None and len(self.running) < limits.concurrency:
                    if not claimed:
                        claimed += self._claim(waiting, limits.concurrency)
                    if not claimed or not self._submit(claimed):
                        break
                if not self.running:
                    break
                done, _ = wait(self.running, SIGN_SECONDS, FIRST_COMPLETED)
                if done:
                    answered = time.monotonic()
                    self._collect(done, bar)
                else:
                    seconds = time.monotonic() - answered
                    bar.remark(f"no answer for {duration(seconds)}")
        finally:
            if self.running:  # after an error or a signal
                self._collect(wait(self.running, ENDING_SECONDS).done, bar)
            self.chat.store.release([question.key(self.chat.model) for question in questions])

    def _claim(self, waiting: deque[Question], n: int) -> list[Question]:
        """Claim the next questions that no other run is asking."""
        claimed: list[Question] = []
        while waiting and not claimed:
            batch = [waiting.popleft() for _ in range(min(n, len(waiting)))]
            keys = self.chat.store.claim([question.key(self.chat.model) for question in batch])
            claimed = [question for question in batch if question.key(self.chat.model) in keys]
        return claimed

    def _submit(self, claimed: deque[Question]) -> bool:
        """Send the next question, unless a limit forbids it; return whether it was sent.

        Running requests count with their largest possible cost. If that reaches the limit, the
        caller waits for their answers.
        """
        cap = self.chat.room([*self.running.values(), claimed[0]])
        if cap and not self.running:
            self.stop = AskingError(f"{cap} is used up (${self.chat.spent.cost:.4f} spent)")
        if cap:
            return False
        question = claimed.popleft()
        assert self.chat.endpoint is not None
        future: Future[Reply] = Future()
        self.running[future] = (
            question  # before the request starts, so that an interrupt loses no question
        )
        in_background(future, partial(self.chat.endpoint.complete, self.chat.model, question))
        self.chat.spent.requests += 1
        return True

    def _collect(self, done: set[Future[Reply]], bar: Bar) -> None:
        """Store the answers that arrived; note lost questions and the error that stops the
        round."""
        answers = []
        for future in done:
            error = future.exception()
            if error is None:
                self.in_a_row = 0
                question = self.running[future]
                record, (tokens_in, _) = question.record(self.chat.model), question.tokens()
                answers.append((record, future.result(), tokens_in))
                continue
            self.lost.append(self.running.pop(future))
            self.last = str(error)
            self.in_a_row += 1
            if not isinstance(error, TimeoutError) or self.in_a_row >= LOST_IN_A_ROW:
                self.stop = self.stop or error
        if answers:
            self.chat.keep(answers)
            for future in (
                done & self.running.keys()
            ):  # an interrupt before this line loses no answer
                del self.running[future]
            bar.advance(len(answers))
            bar.remark(f"${self.chat.spent.cost:.4f}")

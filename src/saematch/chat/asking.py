"""Ask an LLM many questions: what is known is not asked, and nothing is paid for twice."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

from tqdm import tqdm

from saematch.chat.model import ChatModel
from saematch.chat.questions import Asked, Judge, Question, Reply
from saematch.chat.replies import ReplyStore
from saematch.core.background import ENDING_SECONDS, in_background
from saematch.core.errors import InputError

log = logging.getLogger(__name__)

LOST_IN_A_ROW = 20
"""Requests lost one after the other, retries included, after which the rest is not tried."""
POLL_SECONDS = 1.0
"""Between looks at what another run was asking."""


class AskingError(InputError):
    """Asking cannot go on; what was answered is kept."""


@runtime_checkable
class Endpoint(Protocol):
    """What answers questions."""

    def complete(self, model: str, question: Question) -> Reply:
        """Answer one question.

        Raises ``AskingError`` if no question will be answered, ``TimeoutError`` if this one was not
        after all retries.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class BatchRunner(Protocol):
    """What hands questions in by the file, and fetches answers."""

    def run(self, questions: Sequence[Question], bar: tqdm) -> None:
        """Return when every question is answered, or was handed in by another run."""
        ...


@dataclass
class Spent:
    """What was asked since the start of the run, and what all its answers took."""

    requests: int = 0
    cost: float = 0.0
    """Dollars of this start."""
    tokens_in: int = 0
    tokens_out: int = 0
    reused: int = 0
    """Answers that were there already."""


class Chat(Judge):
    """One LLM of a run, with its answers of all runs and its caps."""

    writes: ClassVar[bool] = True

    def __init__(
        self, spec: ChatModel, model: str, endpoint: Endpoint | None, store: ReplyStore
    ) -> None:
        self.spec, self.model, self.endpoint, self.store = spec, model, endpoint, store
        self.batches: BatchRunner | None = None
        """The server's Batch API, if it may have one."""
        self.spent = Spent()
        self._seen: dict[str, str] = {}
        """Of every answer that was used, who gave it, in the server's words."""

    def ask(self, questions: Sequence[Question], what: str) -> dict[Question, Reply]:
        """Return the answers; with ``cached_only`` those that there are.

        ``what`` names the answers in the plural, for the announcement and the progress bar. Raises
        ``AskingError`` when a cap is reached or the server does not answer; a later call goes on.
        """
        by_key = {question.key(self.model): question for question in questions}
        found = self.store.find(list(by_key))
        left = [question for key, question in by_key.items() if key not in found]
        self.spent.reused += len(found.keys() - self._seen.keys())
        if left and self.endpoint is not None:
            self._announce(what, len(by_key), left)
            _Round(self, what).run(left)
            found = self.store.find(list(by_key))
        self._seen |= {key: reply.served_by for key, reply in found.items()}
        return {by_key[key]: reply for key, reply in found.items()}

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Return about how many tokens go in, at most come out, and dollars."""
        tokens_in, tokens_out = (
            sum(of) for of in zip(*(question.tokens() for question in questions), strict=True)
        )
        return tokens_in, tokens_out, self.spec.cost(tokens_in, tokens_out)

    def room(self, pending: Sequence[Question]) -> str:
        """Return the cap that the next question may pass, empty if there is room for it.

        ``pending`` are the questions in flight and the next one.
        """
        limits = self.spec.limits
        if limits.max_requests is not None and self.spent.requests >= limits.max_requests:
            return f"judge.limits.max_requests={limits.max_requests}"
        if limits.max_cost is None or (
            self.spent.cost + self.estimate(pending)[2] <= limits.max_cost
        ):
            return ""
        return f"judge.limits.max_cost={limits.max_cost}"

    def keep(self, answers: Sequence[tuple[Asked, Reply, int]]) -> None:
        """Keep answers that came together, in one write, and count what they took.

        With each comes an estimate of the tokens of its question, for servers that do not tell.
        """
        counted = []
        for asked, reply, tokens_in in answers:
            if not reply.tokens_in and not reply.refused:
                reply = replace(reply, tokens_in=tokens_in, tokens_out=len(reply.content) // 4)
            counted.append((asked, reply))
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
        """Return what answered, and what it took."""
        about = {"model": self.model, "base_url": self.spec.base_url}
        return {**about, "served_by": dict(Counter(self._seen.values())), **vars(self.spent)}

    def _announce(self, what: str, total: int, left: Sequence[Question]) -> None:
        tokens_in, tokens_out, cost = self.estimate(left)
        log.info(
            "%s by %s: %d in all, %d known, %d to ask: about %s tokens in and at most %s out%s",
            what, self.model, total, total - len(left), len(left), f"{tokens_in:,}",
            f"{tokens_out:,}", f", at most ${cost:.2f}" if cost else "",
        )  # fmt: skip
        cap = self.spec.limits.max_cost
        if cap is not None and cost > cap - self.spent.cost:
            log.warning("this may stop at judge.limits.max_cost=%s and can go on later", cap)


class _Round:
    """One call of ``Chat.ask``: requests in flight, answers kept one by one, caps watched."""

    def __init__(self, chat: Chat, what: str) -> None:
        self.chat, self.what = chat, what
        self.running: dict[Future[Reply], Question] = {}
        self.lost: list[Question] = []
        self.in_a_row = 0
        self.stop: BaseException | None = None
        self.last = ""

    def run(self, questions: Sequence[Question]) -> None:
        """Ask until everything is answered; whatever another run is asking is waited for."""
        chat = self.chat
        left = list(questions)
        with tqdm(total=len(left), desc=self.what, unit="answer", leave=False) as bar:
            while left:
                if chat.batches and (chat.spec.batch or self._in_batches(left)):
                    chat.batches.run(left, bar)
                else:
                    self._ask(left, bar)
                known = chat.store.find([question.key(chat.model) for question in left])
                left = [question for question in left if question.key(chat.model) not in known]
                self._complain(len(left), len(questions))
                if left:
                    bar.set_postfix_str(f"{len(left)} asked by another run")
                    time.sleep(POLL_SECONDS)

    def _in_batches(self, left: Sequence[Question]) -> bool:
        """Whether some of the questions were handed in as a batch, by an earlier start."""
        batches = self.chat.store.batches(self.chat.model)
        waiting = {asked.key for batch in batches for asked in batch.asked}
        return any(question.key(self.chat.model) in waiting for question in left)

    def _complain(self, n_left: int, n_questions: int) -> None:
        """Raise what stopped the round, with what is left to do."""
        kept = f"{n_questions - n_left} of {n_questions} answers are kept"
        if isinstance(self.stop, AskingError):
            raise AskingError(f"{self.stop}; {kept}, the same command goes on") from None
        if self.stop is not None and not isinstance(self.stop, TimeoutError):
            raise self.stop
        if self.lost:
            raise AskingError(
                f"{len(self.lost)} requests to {self.chat.spec.base_url} were not answered after "
                f"{self.chat.spec.limits.retries} retries (last: {self.last}); {kept}, the same "
                "command goes on"
            )

    def _ask(self, questions: Sequence[Question], bar: tqdm) -> None:
        limits = self.chat.spec.limits
        waiting = deque(questions)
        claimed: deque[Question] = deque()
        try:
            while True:
                while self.stop is None and len(self.running) < limits.concurrency:
                    if not claimed:
                        claimed += self._claim(waiting, limits.concurrency)
                    if not claimed or not self._submit(claimed):
                        break
                if not self.running:
                    break
                done, _ = wait(self.running, return_when=FIRST_COMPLETED)
                self._collect(done, bar)
        finally:
            if self.running:  # an error or a signal came between
                self._collect(wait(self.running, ENDING_SECONDS).done, bar)
            self.chat.store.release([question.key(self.chat.model) for question in questions])

    def _claim(self, waiting: deque[Question], n: int) -> list[Question]:
        """Take the next questions that no other run is asking."""
        mine: list[Question] = []
        while waiting and not mine:
            some = [waiting.popleft() for _ in range(min(n, len(waiting)))]
            keys = self.chat.store.claim([question.key(self.chat.model) for question in some])
            mine = [question for question in some if question.key(self.chat.model) in keys]
        return mine

    def _submit(self, claimed: deque[Question]) -> bool:
        """Send the next question, unless a cap stands against it.

        What is in flight counts at its most; if that leaves no room, its answers are waited for.
        """
        cap = self.chat.room([*self.running.values(), claimed[0]])
        if cap and not self.running:
            self.stop = AskingError(f"{cap} is used up (${self.chat.spent.cost:.4f} spent)")
        if cap:
            return False
        question = claimed.popleft()
        assert self.chat.endpoint is not None
        future: Future[Reply] = Future()
        self.running[future] = question  # before it begins: an interrupt between loses none
        in_background(future, partial(self.chat.endpoint.complete, self.chat.model, question))
        self.chat.spent.requests += 1
        return True

    def _collect(self, done: set[Future[Reply]], bar: tqdm) -> None:
        """Keep the answers that came; note what was lost, and what stops the round."""
        answers = []
        for future in done:
            error = future.exception()
            if error is None:
                self.in_a_row = 0
                question = self.running[future]
                asked, (tokens_in, _) = question.asked(self.chat.model), question.tokens()
                answers.append((asked, future.result(), tokens_in))
                continue
            self.lost.append(self.running.pop(future))
            self.last = str(error)
            self.in_a_row += 1
            if not isinstance(error, TimeoutError) or self.in_a_row >= LOST_IN_A_ROW:
                self.stop = self.stop or error
        if answers:
            self.chat.keep(answers)
            for future in done & self.running.keys():  # an interrupt before this loses none
                del self.running[future]
            bar.update(len(answers))
            bar.set_postfix_str(f"${self.chat.spent.cost:.4f}", refresh=False)

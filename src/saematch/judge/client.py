"""Language models behind an OpenAI-compatible server. It and ``batches`` alone know openai."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from saematch.judge.asking import AskingError, Chat, Endpoint
from saematch.judge.questions import Question, Reply
from saematch.judge.store import ReplyStore

if TYPE_CHECKING:
    from openai import OpenAI

log = logging.getLogger(__name__)

NO_KEY = "none"
"""Sent where the server wants no key."""
OPTIONAL = ("response_format", "max_tokens", "temperature")
"""Options that some servers and models do not take, and that one can do without."""
RETRY_SECONDS = 0.5
"""Before an answer that was no JSON is asked for again; doubles each time."""


@dataclass(frozen=True)
class Limits:
    """What asking may cost, and how hard it may try."""

    max_cost: float | None = None
    """Dollars that one start of a run may spend; None for no cap."""
    max_requests: int | None = None
    """Questions that one start of a run may ask; None for no cap."""
    concurrency: int = 16
    """Requests in flight."""
    timeout: float = 60.0
    """Seconds that a request may take."""
    retries: int = 8
    """How often a request is sent again after an answer that may pass: 408, 409, 429, 5xx, a broken
    connection, a time-out, or a body that is no JSON."""

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_requests"):
            cap = getattr(self, name)
            if cap is not None and cap <= 0:
                raise ValueError(
                    f"judge.limits.{name}={cap} pays for no judgement: raise it, take judge=none, "
                    "or set judge.cached_only=true to use the answers that are there"
                )
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise ValueError(
                f"judge.limits: concurrency={self.concurrency}, timeout={self.timeout} and "
                f"retries={self.retries} must be at least 1, above 0 and at least 0"
            )


@dataclass(frozen=True)
class ChatModel:
    """Spec of an LLM behind an OpenAI-compatible server."""

    model: str | None
    """Name as the server knows it; None for the only one that it has."""
    base_url: str
    key_variable: str | None = None
    """Environment variable that holds the key; None if the server wants none."""
    price_input: float = 0.0
    """Dollars for a million tokens of questions."""
    price_output: float = 0.0
    """Dollars for a million tokens of answers."""
    structured: bool = True
    """Ask for an answer that fits a JSON schema; given up by itself if the server refuses that."""
    batch: bool = False
    """Hand questions in through the Batch API: half the price, an answer within a day."""
    cached_only: bool = False
    """Take answers that are kept already and ask nothing; others count as UNASKED. Needs no key."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"judge.base_url={self.base_url!r} must begin with http:// or https://, as in "
                "http://127.0.0.1:8000/v1"
            )
        if parts.query or parts.username or parts.password:
            raise ValueError(
                f"judge.base_url for {parts.hostname} holds a password or a query: keys come from "
                "the environment variable that judge.key_variable names"
            )
        if self.cached_only and self.model is None:
            raise ValueError("judge.cached_only=true needs judge.model, by which answers are kept")

    def connect(self, store: Path) -> Chat:
        """Return what asks this model; says in one line what is wrong with key, server or name."""
        if self.cached_only:
            assert self.model is not None
            return Chat(self, self.model, None, ReplyStore(store))
        server = OpenAiServer(self)
        model = server.model_name()
        return Chat(self, model, server, ReplyStore(store))

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return dollars."""
        price = (tokens_in * self.price_input + tokens_out * self.price_output) / 1e6
        return price / 2 if self.batch else price


@dataclass(frozen=True)
class NoJudge:
    """Spec: nothing is asked of any LLM."""

    def connect(self, store: Path) -> None:
        """Return nobody."""


class OpenAiServer(Endpoint):
    """The openai client of one server; its methods may be called from several threads."""

    def __init__(self, spec: ChatModel) -> None:
        import openai

        self.spec = spec
        self.key = _key(spec)
        self.given_up: frozenset[str] = frozenset()
        for name in ("httpx", "httpx2", "openai"):  # a line a request
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client: OpenAI = openai.OpenAI(
            base_url=spec.base_url,
            api_key=self.key,
            max_retries=spec.limits.retries,
            timeout=spec.limits.timeout,
        )

    def model_name(self) -> str:
        """Return the model to ask; check on the way that the server is there and takes the key."""
        import openai

        try:
            listing = self.client.with_options(max_retries=1).models.list()
            served = [model.id for model in listing.data or ()]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.refused(error) from None
        except openai.APIConnectionError as error:
            raise AskingError(
                f"cannot reach the judge at {self.spec.base_url}: {_reason(error)}; start the "
                "server, correct judge.base_url, or take judge=none"
            ) from None
        except (openai.OpenAIError, AttributeError, TypeError, json.JSONDecodeError):
            served = []  # some servers cannot list what they serve
        if self.spec.model is not None:
            return self.spec.model
        if len(served) != 1:
            some = ", ".join(served[:5]) if served else "none"
            raise AskingError(
                f"judge.model is not set, and {self.spec.base_url} names {len(served)} models "
                f"({some}): set judge.model"
            )
        return served[0]

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the request's body."""
        prompt = question.prompt
        body = {
            "model": model,
            "messages": prompt.messages(question.texts),
            "temperature": 0,
            "max_tokens": prompt.max_tokens,
        }
        if self.spec.structured:
            schema = {"name": prompt.name, "strict": True, "schema": prompt.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        for name in self.given_up:
            body.pop(name, None)
        if "max_tokens" in self.given_up:
            body["max_completion_tokens"] = prompt.max_tokens
        return body

    def _give_up(self, name: str) -> None:
        """Ask without an option from now on."""
        if name not in self.given_up:
            log.warning("%s does not take %s; asking without", self.spec.base_url, name)
        self.given_up |= {name}

    def complete(self, model: str, question: Question) -> Reply:
        """Ask one question; ``TransientError`` of asking if it may work later, else AskingError."""
        import openai

        for attempt in range(self.spec.limits.retries + 1):
            body = self.body(model, question)
            try:
                answer = self.client.chat.completions.create(**body)
                if not isinstance(answer, str):  # a page of HTML from a proxy comes as a string
                    return read_completion(answer.model_dump())
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if error.code == "content_filter":
                    return Reply("", refused=True, finish_reason="content_filter")
                refused = [name for name in OPTIONAL if name in body and name in str(error)]
                if not refused:
                    raise self.refused(error) from None
                self._give_up(refused[0])
                continue
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) \
                    as error:  # fmt: skip
                if getattr(error, "code", None) == "insufficient_quota":
                    raise self.refused(error) from None
                raise self._scrubbed(error, TimeoutError) from None
            except openai.APIStatusError as error:
                raise self.refused(error) from None
            except json.JSONDecodeError:
                pass
            time.sleep(min(8.0, RETRY_SECONDS * 2**attempt))
        raise TimeoutError("answers that are no JSON")

    def refused(self, error: Exception) -> Exception:
        """Return the server's refusal in one line."""
        import openai

        said = self._scrubbed(error, str)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            variable = self.spec.key_variable or "judge.key_variable, which is not set"
            return AskingError(
                f"{self.spec.base_url} refuses the key ({said}); check the environment variable "
                f"{variable}"
            )
        if isinstance(error, openai.NotFoundError):
            return AskingError(
                f"{self.spec.base_url} has no model {self.spec.model!r} ({said}); set judge.model, "
                "or end judge.base_url with /v1"
            )
        return AskingError(f"{self.spec.base_url} refuses the question ({said})")

    def _scrubbed(self, error: Exception, kind: type) -> Any:
        """Return the first line of an error's text, without the key."""
        return kind(_reason(error).replace(self.key, "***"))


def read_completion(answer: dict[str, Any]) -> Reply:
    """Return what a chat completion says; an empty choice is an empty answer."""
    choices = answer.get("choices") or [{}]
    message = choices[0].get("message") or {}
    usage = answer.get("usage") or {}
    finish = choices[0].get("finish_reason") or ""
    refusal = message.get("refusal")
    return Reply(
        content=refusal or message.get("content") or "",
        refused=bool(refusal) or finish == "content_filter",
        finish_reason=finish,
        tokens_in=usage.get("prompt_tokens") or 0,
        tokens_out=usage.get("completion_tokens") or 0,
        served_by=answer.get("model") or "",
    )


def _key(spec: ChatModel) -> str:
    if spec.key_variable is None:
        return NO_KEY
    key = os.environ.get(spec.key_variable, "").strip()
    if not key:
        raise AskingError(
            f"the environment variable {spec.key_variable} is not set: it must hold the key of "
            f"{spec.base_url} (judge=local needs none, judge=none asks nobody)"
        )
    return key


def _reason(error: Exception) -> str:
    """Return what an error says, or its cause where it says nothing itself."""
    cause = error.__cause__
    text = str(cause) if cause is not None and str(cause) else str(error)
    return text.splitlines()[0][:300] if text else type(error).__name__

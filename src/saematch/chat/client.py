"""Language models behind an OpenAI-compatible server."""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from saematch.chat.asking import AskingError, Endpoint
from saematch.chat.model import ChatModel
from saematch.chat.questions import Question, Reply
from saematch.chat.server import NO_JSON, RETRY_SECONDS, Access, Server, is_temporary

log = logging.getLogger(__name__)

NO_CHOICE = "no choice"
"""Finish reason of an answer without choices."""
OPTIONAL = ("response_format", "max_tokens", "temperature")
"""Optional parts of a request, which some servers and models do not support."""


class OpenAiServer(Server, Endpoint):
    """The openai client of an LLM's server; several threads may call its methods."""

    def __init__(self, spec: ChatModel) -> None:
        self.spec = spec
        self.given_up: frozenset[str] = frozenset()
        super().__init__(
            Access(
                "judge", spec.model, spec.base_url, spec.key_variable,
                "judge=local needs no key, judge=overlap no LLM",
                spec.limits.retries, spec.limits.timeout,
            )
        )  # fmt: skip

    def model_name(self) -> str:
        """Return the name of the model; checks that the server is reachable and accepts the key."""
        import openai

        try:
            listing = self.client.with_options(max_retries=1).models.list()
            served = [model.id for model in listing.data or ()]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.refused(error) from None
        except openai.APIConnectionError as error:
            raise AskingError(
                f"cannot reach the judge at {self.spec.base_url}: {self.scrubbed(error)}; start "
                "the server, correct judge.base_url, or set judge.cached_only=true, judge=overlap "
                "or judge=none"
            ) from None
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                raise self.refused(error) from None
            served = []
        except (openai.OpenAIError, AttributeError, TypeError, *NO_JSON):
            served = []  # some servers cannot list their models
        if self.spec.model is not None:
            if served and self.spec.model not in served:
                self._check_name(self.spec.model, served)
            return self.spec.model
        if len(served) != 1:
            names = ", ".join(served[:5]) if served else "none"
            raise AskingError(
                f"judge.model is not set, and {self.spec.base_url} lists {len(served)} models "
                f"({names}): set judge.model"
            )
        return served[0]

    def _check_name(self, model: str, served: Sequence[str]) -> None:
        """Raise ``AskingError`` for a model that the server lacks; some lists are incomplete."""
        import openai

        similar = ", ".join(difflib.get_close_matches(model, served, n=3) or served[:3])
        try:
            self.client.models.retrieve(model)
        except openai.NotFoundError as error:
            if error.code == "model_not_found":
                raise AskingError(
                    f"{self.spec.base_url} has no model {model!r}, but {similar}: set judge.model"
                ) from None
        except (openai.OpenAIError, *NO_JSON):
            pass
        else:
            return
        log.warning("%s does not list the model %s but lists %s; it may refuse the questions",
                    self.spec.base_url, model, similar)  # fmt: skip

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the body of the request."""
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

    def give_up(self, body: Mapping[str, object], message: str) -> bool:
        """Stop sending an option that an error message names; return whether it names one."""
        named = [name for name in OPTIONAL if name in body and name in message]
        if named and named[0] not in self.given_up:
            log.warning(
                "%s does not support %s; continuing without it", self.spec.base_url, named[0]
            )
            self.given_up |= {named[0]}
        return bool(named)

    def complete(self, model: str, question: Question) -> Reply:
        """Ask one question.

        Raises ``TimeoutError`` if there is no answer after all retries, and ``AskingError`` if the
        server will answer no question.
        """
        import openai

        attempt, empty = 0, None
        while attempt <= self.spec.limits.retries:
            body = self.body(model, question)
            try:
                answer = self.client.chat.completions.create(**body)
                reply = read_completion(answer.model_dump(warnings=False))
                if reply.finish_reason != NO_CHOICE or reply.tokens_out:  # it costs money
                    return reply
                empty = reply
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refusal = read_refusal(error.code, str(error))
                if refusal is not None:
                    return refusal
                if not self.give_up(body, str(error)):
                    raise self.refused(error) from None
                continue
            except openai.APIStatusError as error:
                if error.code == "insufficient_quota" or not is_temporary(error.status_code):
                    raise self.refused(error) from None
                raise TimeoutError(self.scrubbed(error)) from None
            except openai.APIConnectionError as error:
                raise TimeoutError(self.scrubbed(error)) from None
            except (AttributeError, TypeError, *NO_JSON):
                self.log_retry("with an HTML page or other text that is no answer")
            time.sleep(min(8.0, RETRY_SECONDS * 2**attempt))
            attempt += 1
        if empty is None:
            raise TimeoutError("the reply was not an answer")
        return empty


def read_completion(answer: Mapping[str, Any]) -> Reply:
    """Return the reply in a chat completion.

    A completion without a message is an empty reply with the finish reason ``NO_CHOICE``. Raises
    ``TypeError`` or ``AttributeError`` if ``answer`` is not a completion.
    """
    if answer.get("error"):
        raise TypeError("an error instead of an answer")
    choices, usage = answer.get("choices") or [None], answer.get("usage") or {}
    choice = choices[0] or {}
    message = choice.get("message") or {}
    finish = choice.get("finish_reason") or ""
    if not message and finish != "content_filter":
        finish = NO_CHOICE
    refusal, content = message.get("refusal"), message.get("content")
    return Reply(
        content=str(refusal or content or ""),
        refused=bool(refusal) or finish == "content_filter",
        finish_reason=finish,
        tokens_in=usage.get("prompt_tokens") or 0,
        tokens_out=usage.get("completion_tokens") or 0,
        served_by=str(answer.get("model") or ""),
    )


def read_refusal(code: str | None, message: str) -> Reply | None:
    """Return the reply for a refused request (status 400); None if the error concerns all requests.

    A content filter is a refusal. A question that is too long for the model has an empty reply.
    """
    if code == "content_filter":
        return Reply("", refused=True, finish_reason=code)
    if code == "context_length_exceeded" or re.search(r"context (length|size|window)", message):
        return Reply("", finish_reason="context_length_exceeded")
    return None

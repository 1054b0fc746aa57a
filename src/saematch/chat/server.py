"""Connection to an OpenAI-compatible server, with its errors in one line."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from saematch.chat.asking import AskingError
from saematch.core.safe_text import visible

if TYPE_CHECKING:
    import httpx
    from openai import OpenAI

log = logging.getLogger(__name__)

T = TypeVar("T")

NO_KEY = "none"
"""Key that is sent to servers that need none."""
NO_JSON = (json.JSONDecodeError, RecursionError)
"""Errors of the client for a body that is not JSON or is nested too deeply."""
RETRY_SECONDS = 0.5
"""Seconds before the first retry after a reply that is not JSON; doubled after each retry."""


class Access(NamedTuple):
    """How to reach a server, and the names of the settings in messages."""

    setting: str
    """Name of the settings, such as ``judge``."""
    model: str | None
    base_url: str
    key_variable: str | None
    """Environment variable that holds the key; None if the server needs no key."""
    without_key: str
    """Settings that need no key, for the message that there is none."""
    retries: int
    timeout: float
    """Seconds to wait for a connection and for each part of an answer."""


class Server:
    """The openai client of one server; several threads may call its methods."""

    def __init__(self, access: Access) -> None:
        import openai

        self.access = access
        self.retried: set[str] = set()
        """Answers after which requests are sent again; the log names each once."""
        self.key = _key(access)
        for name in ("httpx", "httpx2", "openai"):  # they log a line per request
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client: OpenAI = openai.OpenAI(
            base_url=access.base_url,
            api_key=self.key,
            max_retries=access.retries,
            timeout=access.timeout,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # a redirect would get the key
                event_hooks={"response": [self._log_status]},
            ),
        )

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def log_retry(self, answer: str) -> None:
        """Log the first answer of each kind after which requests are sent again."""
        if self.access.retries and answer not in self.retried:
            self.retried.add(answer)
            log.warning("%s answers %s: asking again, up to %d times a request",
                        self.access.base_url, answer, self.access.retries)  # fmt: skip

    def _log_status(self, response: httpx.Response) -> None:
        if is_temporary(response.status_code):
            self.log_retry(f"{response.status_code} ({visible(response.reason_phrase)})")

    def call(self, request: Callable[[], T]) -> T | None:
        """Return the answer to a request; None if it is no JSON, or JSON that is no answer.

        Raises ``AskingError`` with one line if the server cannot be reached or refuses the request,
        after the client's retries.
        """
        import openai

        try:
            return request()
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            raise self.refused(error) from None
        except (openai.OpenAIError, AttributeError, TypeError, ValueError, RecursionError):
            return None

    def refused(self, error: Exception) -> AskingError:
        """Return an error with the server's reason for a refusal, in one line."""
        import openai

        reason, url, setting = self.scrubbed(error), self.access.base_url, self.access.setting
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            variable = self.access.key_variable or f"{setting}.key_variable, which is not set"
            return AskingError(
                f"{url} refuses the key ({reason}); check the environment variable {variable}"
            )
        if isinstance(error, openai.NotFoundError):
            return AskingError(
                f"{url} has no model {self.access.model!r} ({reason}); set {setting}.model, or end "
                f"{setting}.base_url with /v1"
            )
        if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
            target = visible(error.response.headers.get("location", "nowhere"))
            return AskingError(
                f"{url} answers with a redirect to {target}, which is not followed: to use that "
                f"server, set {setting}.base_url to it"
            )
        if isinstance(error, openai.APIConnectionError):
            return AskingError(
                f"cannot reach {url}: {reason}; start the server or correct {setting}.base_url"
            )
        return AskingError(f"{url} refuses the request ({reason})")

    def scrubbed(self, error: Exception) -> str:
        """Return the first line of an error message, without the key."""
        cause = error.__cause__
        text = str(cause) if cause is not None and str(cause) else str(error)
        if self.key != NO_KEY:
            text = text.replace(self.key, "***")
        return visible(text.splitlines()[0][:300]) if text else type(error).__name__


def is_temporary(status: int) -> bool:
    """Return whether a later request may succeed after an answer with this status."""
    return status in (408, 409, 429) or status >= 500


def _key(access: Access) -> str:
    if access.key_variable is None:
        return NO_KEY
    key = os.environ.get(access.key_variable, "").strip()
    if not key:
        raise AskingError(
            f"the environment variable {access.key_variable} is not set: it must hold the key of "
            f"{access.base_url} ({access.without_key})"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise AskingError(
            f"the environment variable {access.key_variable} contains a space, a line break or "
            "a character that no key has"
        )
    return key

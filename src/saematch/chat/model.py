"""Specs of the LLM of a run."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from saematch.core.errors import InputError
from saematch.core.specs import spec

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
"""Pattern of names of environment variables. Few keys have only capital letters and digits."""


def check_server(setting: str, base_url: str, key_variable: str | None) -> None:
    """Raise ``InputError`` for an address or name of a key that ``setting`` may not have."""
    if set("@?#") & set(base_url):
        raise InputError(
            f"{setting}.base_url contains a password or a query: put the key into the environment "
            f"variable that {setting}.key_variable names"
        )
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            f"{setting}.base_url={base_url!r} must begin with http:// or https://, as in "
            "http://127.0.0.1:8000/v1"
        )
    if key_variable is not None and not VARIABLE.fullmatch(key_variable):
        raise InputError(
            f"{setting}.key_variable must be the name of an environment variable in capital "
            "letters, such as OPENAI_API_KEY, and not the key itself"
        )


@spec("judge.limits")
class Limits:
    """Limits on the cost, number, concurrency and retries of requests."""

    max_cost: float | None = None
    """Largest cost in dollars of one start of a run; None for no limit."""
    max_requests: int | None = None
    """Largest number of questions in one start of a run; None for no limit."""
    concurrency: int = 16
    """Number of requests at the same time."""
    timeout: float = 60.0
    """Seconds to wait for a connection and for each part of an answer."""
    retries: int = 8
    """Number of retries of a request after a temporary error: status 408, 409, 429 or 5xx, a broken
    connection, a time-out, or a body that is not an answer."""

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_requests"):
            cap = getattr(self, name)
            if cap is not None and cap <= 0:
                raise InputError(
                    f"judge.limits.{name}={cap} allows no judgement: raise it, set judge=none, or "
                    "set judge.cached_only=true to use only stored answers"
                )
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise InputError(
                f"judge.limits: concurrency={self.concurrency}, timeout={self.timeout} and "
                f"retries={self.retries} must be at least 1, above 0 and at least 0"
            )


@spec("judge")
class ChatModel:
    """Spec of an LLM behind an OpenAI-compatible server."""

    model: str | None
    """Name of the model on the server; None if the server has only one."""
    base_url: str
    key_variable: str | None = None
    """Environment variable that holds the key; None if the server needs no key."""
    price_input: float = 0.0
    """Dollars per million input tokens."""
    price_output: float = 0.0
    """Dollars per million output tokens."""
    structured: bool = True
    """Whether to request answers in a JSON schema; switched off if the server refuses that."""
    batch: bool = False
    """Whether to use the Batch API: half the price, answers within a day."""
    cached_only: bool = False
    """Whether to use only stored answers; other questions count as UNASKED. Needs no key."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_server("judge", self.base_url, self.key_variable)
        if self.cached_only and self.model is None:
            raise InputError(
                "judge.cached_only=true needs judge.model, the name under which answers are stored"
            )

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return the cost in dollars."""
        price = (tokens_in * self.price_input + tokens_out * self.price_output) / 1e6
        return price / 2 if self.batch else price


@spec("judge")
class NoJudge:
    """Spec of a run without judgements and without an LLM."""

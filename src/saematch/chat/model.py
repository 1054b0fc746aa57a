"""The LLM of a run, as it is configured."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from saematch.core.errors import InputError
from saematch.core.specs import spec

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
"""Name of an environment variable: few keys consist of capital letters and digits alone."""


@spec("judge.limits")
class Limits:
    """What asking may cost, and how hard it may try."""

    max_cost: float | None = None
    """Dollars that one start of a run may spend; None for no cap."""
    max_requests: int | None = None
    """Questions that one start of a run may ask; None for no cap."""
    concurrency: int = 16
    """Requests in flight."""
    timeout: float = 60.0
    """Seconds to wait for a connection, and for each part of an answer."""
    retries: int = 8
    """How often a request is sent again after an answer that may pass: 408, 409, 429, 5xx, a broken
    connection, a time-out, or a body that is no answer."""

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_requests"):
            cap = getattr(self, name)
            if cap is not None and cap <= 0:
                raise InputError(
                    f"judge.limits.{name}={cap} pays for no judgement: raise it, take judge=none, "
                    "or set judge.cached_only=true to use the answers that are there"
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
        if set("@?#") & set(self.base_url):
            raise InputError(
                "judge.base_url holds a password or a query: keys come from the environment "
                "variable that judge.key_variable names"
            )
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(
                f"judge.base_url={self.base_url!r} must begin with http:// or https://, as in "
                "http://127.0.0.1:8000/v1"
            )
        if self.key_variable is not None and not VARIABLE.fullmatch(self.key_variable):
            raise InputError(
                "judge.key_variable must be the name of an environment variable in capital "
                "letters, such as OPENAI_API_KEY, and not the key itself"
            )
        if self.cached_only and self.model is None:
            raise InputError("judge.cached_only=true needs judge.model, by which answers are kept")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return dollars."""
        price = (tokens_in * self.price_input + tokens_out * self.price_output) / 1e6
        return price / 2 if self.batch else price


@spec("judge")
class NoJudge:
    """Spec: nothing is judged, and no LLM is asked."""

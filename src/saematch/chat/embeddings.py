"""Embeddings of texts by an OpenAI-compatible server; every vector is stored."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from saematch.chat.asking import AskingError
from saematch.chat.model import check_server
from saematch.chat.questions import QuestionRecord, Reply
from saematch.chat.replies import ReplyStore
from saematch.chat.server import RETRY_SECONDS, Access, Server
from saematch.core.background import in_background
from saematch.core.files import hashed
from saematch.core.progress import progress
from saematch.core.specs import AtLeast0, AtLeast1, Positive, Text, spec

log = logging.getLogger(__name__)

PROBE = "probe"
"""Text that ``check`` embeds."""
KIND = "embedding"
"""Name of the prompt under which vectors are stored, between the answers of LLMs."""


@spec("embedding")
class EmbeddingEndpoint:
    """Spec of embeddings by a model behind an OpenAI-compatible server (``/embeddings``).

    Vectors are stored by model and text, so no text is sent twice, and a run whose texts all have
    vectors needs neither server nor key. Like a judge, a model is known by its name alone: after a
    change of ``base_url``, stored vectors of a model of that name are used.
    """

    model: Text
    """Name of the model on the server."""
    base_url: str = field(repr=False)
    key_variable: str | None = field(default=None, repr=False)
    """Environment variable that holds the key; None if the server needs no key."""
    batch_size: AtLeast1 = field(default=256, repr=False)
    """Number of texts in a request."""
    concurrency: AtLeast1 = field(default=4, repr=False)
    """Number of requests at the same time."""
    retries: AtLeast0 = field(default=8, repr=False)
    """Number of retries of a request after a temporary error, as in ``judge.limits.retries``."""
    timeout: Positive = field(default=60.0, repr=False)
    """Seconds to wait for a connection and for each part of an answer."""

    def __post_init__(self) -> None:
        check_server("embedding", self.base_url, self.key_variable)

    def check(self, replies: Path) -> None:
        """Embed one text; raises ``AskingError`` with one line if the server does not do that.

        ``replies`` is the file of stored vectors. If it has a vector of this text, an earlier run
        has checked the server.
        """
        self.embed([PROBE], replies)

    def embed(self, texts: Sequence[str], replies: Path) -> Float[np.ndarray, "n_texts size"]:
        """Return a unit vector for each text, in float32, from the store or else from the server.

        Raises ``AskingError`` with one line if the server does not answer; the vectors so far are
        stored.
        """
        store, keys = ReplyStore(replies), {text: self._key(text) for text in texts}
        stored = store.find(list(keys.values()))
        missing = [text for text, key in keys.items() if key not in stored]
        if missing:
            if missing != [PROBE]:
                log.info(
                    "embeddings by %s: %d texts in total, %d to embed",
                    self.model, len(keys), len(missing),
                )  # fmt: skip
            _ask(self, missing, store)
            stored = store.find(list(keys.values()))
        by_text = {text: _decoded(stored[key].content) for text, key in keys.items()}
        sizes = sorted({len(vector) for vector in by_text.values()})
        if len(sizes) > 1:
            raise AskingError(
                f"vectors of {self.model} have {' and '.join(map(str, sizes))} numbers: two models "
                f"have this name; use another name, or move {replies} away"
            )
        vectors = np.stack([by_text[text] for text in texts])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)

    def keep(self, store: ReplyStore, texts: Sequence[str], vectors: Sequence[bytes]) -> None:
        """Store the vectors of texts."""
        answers = [
            (
                QuestionRecord(self._key(text), KIND, (text,), 0),
                Reply(base64.b64encode(vector).decode()),
            )
            for text, vector in zip(texts, vectors, strict=True)
        ]
        store.keep(self.model, answers)

    def _key(self, text: str) -> str:
        return hashed([self.model, KIND, text])


class _EmbeddingServer(Server):
    """The client of a server that embeds texts."""

    def __init__(self, spec: EmbeddingEndpoint) -> None:
        super().__init__(
            Access(
                "embedding", spec.model, spec.base_url, spec.key_variable,
                "embedding.key_variable=null uses no key", spec.retries, spec.timeout,
            )
        )  # fmt: skip

    def embed(self, texts: Sequence[str]) -> list[bytes]:
        """Return the vector of each text, as float32 numbers; raises ``AskingError``."""
        request = partial(
            self.client.embeddings.create, model=str(self.access.model), input=list(texts),
            encoding_format="float",
        )  # fmt: skip
        for attempt in range(self.access.retries + 1):
            vectors = read_vectors(self.call(request), len(texts))
            if vectors is not None:
                return vectors
            time.sleep(min(8.0, RETRY_SECONDS * 2**attempt))
        raise AskingError(
            f"{self.access.base_url} answers without a vector for each text: end "
            "embedding.base_url with /v1, or choose a model of embeddings (embedding.model)"
        )


def read_vectors(answer: Any, n: int) -> list[bytes] | None:
    """Return the ``n`` vectors of an answer, in the order of the texts; None if it has others."""
    try:
        rows = sorted(answer.data, key=lambda row: row.index)
        vectors = [np.asarray(row.embedding, np.float32) for row in rows]
        whole = [row.index for row in rows] == list(range(n))
    except (AttributeError, TypeError, ValueError):
        return None
    sound = all(v.ndim == 1 and len(v) and np.isfinite(v).all() for v in vectors)
    return [vector.tobytes() for vector in vectors] if whole and sound else None


def _decoded(content: str) -> Float[np.ndarray, " size"]:
    return np.frombuffer(base64.b64decode(content), np.float32)


def _ask(spec: EmbeddingEndpoint, texts: Sequence[str], store: ReplyStore) -> None:
    """Embed texts and store each batch of vectors when it arrives."""
    server = _EmbeddingServer(spec)
    slots = threading.Semaphore(spec.concurrency)
    batches: dict[Future[list[bytes]], Sequence[str]] = {}
    try:
        for start in range(0, len(texts), spec.batch_size):
            batch = texts[start : start + spec.batch_size]
            future: Future[list[bytes]] = Future()
            batches[future] = batch
            in_background(future, partial(server.embed, batch), slots)
        with progress("embeddings", len(batches), "request") as bar:
            for future in as_completed(batches):
                spec.keep(store, batches[future], future.result())
                bar.advance()
    finally:
        for future in batches:
            future.cancel()
        server.close()

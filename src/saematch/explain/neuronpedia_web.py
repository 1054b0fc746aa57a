"""Neuronpedia over HTTP: requests with retries, bulk exports in batches, single features."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, make_headers
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from saematch import __version__
from saematch.core.background import ENDING_SECONDS, in_background
from saematch.core.errors import FileError, InputError
from saematch.core.files import parse_json, replacing
from saematch.core.progress import progress

log = logging.getLogger(__name__)

BACKOFF_S = 0.5
"""Half the delay before the third attempt, in seconds; the delay doubles with each attempt."""
LONG_S = 20.0
"""Delay that a server may request without a log message, in seconds."""
TRIES = 3
"""Number of attempts at a batch that arrives but cannot be read."""
BUSY = (429, 500, 502, 503, 504)
LIMIT = ("endpoint", "limitPerWindow", "requestWindow")
ELSE = "explain=own and explain=jsonl work without Neuronpedia"
TEXTS = ("text", "explainer", "method", "tag")
SCHEMA = pa.schema(
    {
        "feature": pa.int32(),
        **dict.fromkeys(TEXTS, pa.string()),
        "embedding": pa.list_(pa.float32()),
    }
)
"""Schema of a stored export: one row for each explanation, tagged with the ETag of its batch."""


class _Patience(Retry):
    """Retries that log a long delay requested by the server."""

    def sleep_for_retry(self, response: BaseHTTPResponse) -> bool:
        seconds = self.get_retry_after(response) or 0.0
        if seconds > LONG_S:
            log.warning("the server requests %.0f s of delay (status %d)", seconds, response.status)
        return super().sleep_for_retry(response)


@dataclass(frozen=True)
class Server:
    """One address, requested with retries through the proxies of the environment."""

    address: str
    connections: int
    retries: int
    timeout: float
    """Time without a byte after which an attempt fails, in seconds."""
    instead: str
    """Advice on how to do without the server, for messages."""

    def pool(self) -> PoolManager:
        """Return a pool of connections, which is a context manager that closes them."""
        settings: dict[str, Any] = {
            "maxsize": self.connections,
            "timeout": self.timeout,
            "headers": {"User-Agent": f"saematch/{__version__}"},
        }
        patience: dict[str, Any] = {
            "backoff_factor": BACKOFF_S,
            "status_forcelist": BUSY,
            "raise_on_status": False,
        }
        settings["retries"] = _Patience(self.retries, **patience)
        parts = urlsplit(self.address)
        proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        if proxy is None:
            return PoolManager(**settings)
        login = make_headers(proxy_basic_auth=parse_url(proxy).auth)
        return ProxyManager(proxy, proxy_headers=login, **settings)

    def get(
        self,
        pool: PoolManager,
        path: str,
        query: Mapping[str, str] | None = None,
        may_lack: bool = False,
    ) -> bytes:
        """Return the body of a response without decoding it.

        For an unknown path it is empty if the path ``may_lack``. Raises ``InputError`` with the
        address if the request fails.
        """
        url = f"{self.address.rstrip('/')}/{path}"
        try:
            answer = pool.request("GET", url, fields=query, decode_content=False)
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"cannot fetch {url} ({reason}); earlier batches are stored, so try again "
                f"later; {self.instead}"
            ) from error
        if answer.status == 404 and may_lack:
            return b""
        if answer.status != 200:
            reason = _limit(answer.data) if answer.status == 429 else _start(answer.data)
            raise InputError(f"{url} answers with status {answer.status}: {reason}; {self.instead}")
        return answer.data


def _start(data: bytes) -> str:
    return " ".join(data[:200].decode("utf-8", "replace").split()) or "nothing more"


def _limit(data: bytes) -> str:
    """Return a message with the rate limit in the body of a response with status 429."""
    with suppress(ValueError, TypeError):
        body = parse_json(data)
        quoted = ", ".join(f"{name} {body[name]}" for name in LIMIT if name in body)
        if quoted:
            return f"its limit is reached ({quoted}), so try again after that window"
    return f"its limit is reached ({_start(data)})"


class _Batch(NamedTuple):
    """One object of the export."""

    key: str
    tag: str
    size: int


class _Broken(ValueError):
    """A batch is incomplete or damaged."""


def keep_export(server: Server, name: str, path: Path, refresh: bool) -> None:
    """Store the export of the source ``name`` in the Parquet file ``path``.

    An existing file stays as it is, or is updated with ``refresh``. Batches are stored in a folder
    next to it until all are complete, so that a killed fetch can continue. Raises ``InputError`` if
    the export is empty, belongs to another SAE, or cannot be fetched completely.
    """
    if path.exists() and not refresh:
        return
    kept = pq.read_table(path) if path.exists() else SCHEMA.empty_table()
    folder = path.with_name(f"{path.stem}.batches")
    with server.pool() as pool:
        batches = _listed(server, pool, name)
        kept_tags = set(kept["tag"].to_pylist())
        new = [batch for tag, batch in batches.items() if tag not in kept_tags]
        slots = Semaphore(server.connections)
        futures: list[Future[pa.Table]] = [Future() for _ in new]
        tables: list[pa.Table] = []
        try:
            for future, batch in zip(futures, new, strict=True):
                call = partial(_table, server, pool, name, batch, folder)
                in_background(future, call, slots)
            with progress(name, len(futures), "batch") as bar:
                for future in futures:
                    tables.append(future.result())
                    bar.advance()
        finally:
            for future in futures:
                future.cancel()
            wait(futures, ENDING_SECONDS)
    still = pc.is_in(kept["tag"], value_set=pa.array(list(batches), pa.string()))
    table = pa.concat_tables([kept.filter(still), *tables])
    if empty := table["text"].null_count:
        log.info("%s: %d explanations of the export are empty and not used", name, empty)
    with replacing(path, None if refresh else Path.exists) as part:
        pq.write_table(table.filter(pc.is_valid(table["text"])), part, compression="zstd")
    shutil.rmtree(folder, ignore_errors=True)


def _listed(server: Server, pool: PoolManager, name: str) -> dict[str, _Batch]:
    """Return the batches of all explanation folders of a source, by ETag."""
    prefix = f"v1/{name}/explanations"  # no slash: it may be explanations-gpt-4o-mini
    query = {"list-type": "2", "prefix": prefix}
    batches: dict[str, _Batch] = {}
    more = True
    while more:
        data = server.get(pool, "", query)
        try:
            page = ElementTree.fromstring(data)
            for node in page.iterfind("{*}Contents"):
                key, tag, size = (node.findtext(f"{{*}}{x}", "") for x in ("Key", "ETag", "Size"))
                if key.endswith(".jsonl.gz"):
                    (tag,) = re.findall(r'^"?([\w-]+)"?$', tag)  # ValueError without a tag
                    batches.setdefault(tag, _Batch(key, tag, int(size)))
            more = page.findtext("{*}IsTruncated") == "true"
            if more:
                (query["continuation-token"],) = (
                    node.text or "" for node in page.iterfind("{*}NextContinuationToken")
                )
        except (ElementTree.ParseError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{server.address} does not list its objects as S3 does ({error}); its answer is "
                f"{_start(data)!r}; {ELSE}"
            ) from error
    if not batches:
        raise InputError(
            f"{server.address} has nothing under {prefix}: no explanations of {name} are "
            f"exported; {ELSE}"
        )
    return batches


def _table(server: Server, pool: PoolManager, name: str, batch: _Batch, folder: Path) -> pa.Table:
    """Return one batch as a table, from its file in ``folder`` or fetched into it."""
    path = folder / f"{batch.tag}.jsonl.gz"
    with suppress(_Broken, FileNotFoundError):
        return _read(path.read_bytes(), name, batch)
    reason = None
    for _ in range(TRIES):
        content = server.get(pool, quote(batch.key))
        try:
            table = _read(content, name, batch)
        except _Broken as error:
            reason = error
            continue
        try:
            with replacing(path) as part:
                part.write_bytes(content)
        except FileError:
            if folder.exists():
                raise  # otherwise another run has fetched all batches and removed the folder
        return table
    raise InputError(
        f"{server.address}/{batch.key} is broken ({reason}) after {TRIES} attempts; the other "
        f"batches are stored, so try again later; {ELSE}"
    ) from reason


def _read(content: bytes, name: str, batch: _Batch) -> pa.Table:
    """Return a batch as a table; the text of an empty explanation is null."""
    if len(content) != batch.size:
        raise _Broken(f"{len(content)} bytes of {batch.size}")
    try:
        lines = gzip.decompress(content).decode("utf-8").split("\n")
        rows = [parse_json(line) for line in lines if line.strip()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _Broken(str(error)) from error
    try:
        sources = {f"{row['modelId']}/{row['layer']}" for row in rows}
        table = pa.Table.from_pylist([_row(row, batch.tag) for row in rows], SCHEMA)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"a row of {batch.key} is invalid: {error!r}; {ELSE}") from error
    if wrong := sorted(sources - {name}):
        raise InputError(
            f"{batch.key} has explanations of {wrong[0]}, which is another SAE than {name} and has "
            f"other features; {ELSE}"
        )
    return table


def _row(row: dict[str, Any], tag: str) -> dict[str, Any]:
    embedding = row.get("embedding")
    if isinstance(embedding, str):  # in older exports
        embedding = parse_json(embedding) if embedding.strip() else None
    return {
        "feature": _feature(row["index"]),
        "embedding": None if embedding is None else np.asarray(embedding, dtype=np.float32),
        **_text(row, tag),
    }


def _feature(index: str | int) -> int:
    if not re.fullmatch(r"\d+", str(index)):
        raise TypeError(f"{index!r} is not the number of a feature")
    return int(index)


def _text(row: dict[str, Any], tag: str) -> dict[str, str | None]:
    """Return the fields of an explanation; an empty text becomes None."""
    text = (row["description"] or "").encode("utf-8", "replace").decode()  # half a surrogate pair
    return {
        "text": text if text.strip() else None,
        "explainer": row.get("explanationModelName") or "unknown",
        "method": row.get("typeName") or "",
        "tag": tag,
    }


def fetch_single(
    server: Server, pool: PoolManager, name: str, feature: int
) -> list[dict[str, str | None]]:
    """Fetch one feature's explanations from the site; none for a feature that it does not have.

    Raises ``InputError`` if the request fails or the answer is invalid.
    """
    path = f"api/feature/{name}/{feature}"
    data = server.get(pool, path, may_lack=True)
    try:
        answer = parse_json(data) if data.strip() else None
        rows = (answer or {}).get("explanations") or []
        texts = [_text(row, "api") for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{server.address}/{path} has an invalid answer ({error!r}); {server.instead}"
        ) from error
    return [text for text in texts if text["text"] is not None]

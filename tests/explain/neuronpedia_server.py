"""A small server in the layout of Neuronpedia's bucket and site, with faults on request."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Fault(NamedTuple):
    """A faulty answer of the server."""

    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    cut: bool = False
    """Announce the right body, send half of it, and hang up."""


LIMIT = Fault(
    429,
    body=json.dumps(
        {
            "error": "Rate limit exceeded",
            "endpoint": "/api/feature",
            "limitPerWindow": 25000,
            "requestWindow": "60 minutes",
        }
    ).encode(),
)


def row(source: str, index: int, text: str | None, explainer: str = "gpt-4o-mini", **more) -> dict:
    """A row of an export."""
    model, layer = source.split("/")
    return {
        "modelId": model,
        "layer": layer,
        "index": str(index),
        "description": text,
        "explanationModelName": explainer,
        "typeName": "oai_token-act-pair",
        "id": f"{layer}-{index}",
        **more,
    }


class NeuronpediaServer:
    """Serves ``objects`` and ``features``; ``log`` holds each path that was asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.features: dict[str, bytes] = {}
        self.page = 1000
        """Keys on a page of a listing."""
        self.log: list[str] = []
        self.agents: set[str] = set()
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def export(self, source: str, rows: Iterable[dict], batch: int, folder: str = "explanations"):
        """Put a batch there and return its key."""
        key = f"v1/{source}/{folder}/batch-{batch}.jsonl.gz"
        lines = "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in rows)
        self.objects[key] = gzip.compress(lines.encode(), mtime=0)
        return key

    def fault(self, path: str, fault: Fault, times: int = 1000) -> None:
        """Answer so the next requests of a path."""
        self._faults[path] += [fault] * times

    def heal(self) -> None:
        self._faults.clear()

    def asked(self, part: str) -> list[str]:
        """Return the logged paths that hold ``part``."""
        return sorted(path for path in self.log if part in path)

    def take(self, path: str, agent: str) -> Fault | None:
        with self._lock:
            self.log.append(path)
            self.agents.add(agent)
            return self._faults[path].pop() if self._faults[path] else None

    def body(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        if path == "/":
            return self._listing(query["prefix"][0], query.get("continuation-token", ["0"])[0])
        key = path.removeprefix("/")
        return self.objects.get(key, self.features.get(key.removeprefix("api/feature/")))

    def _listing(self, prefix: str, token: str) -> bytes:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        start = int(token.removeprefix("token/+="))
        shown = keys[start : start + self.page]
        more = start + self.page < len(keys)
        nodes = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2024-09-01</LastModified>"
            f"<ETag>&quot;{hashlib.md5(self.objects[key]).hexdigest()}-1&quot;</ETag>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in shown
        )
        after = f"<NextContinuationToken>token/+={start + self.page}</NextContinuationToken>"
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{nodes}{after * more}"
            "</ListBucketResult>"
        ).encode()


def _handler(server: NeuronpediaServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            fault = server.take(path, self.headers["User-Agent"])
            body = server.body(path, parse_qs(parts.query))
            status = 404 if body is None else 200
            if fault and not fault.cut:
                status, body = fault.status, fault.body
            body = body or b""
            self.send_response(status)
            for name, value in fault.headers if fault else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault and fault.cut:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    return Handler

"""A local server that embeds texts by counting letters, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTERS = "abc"


def counts(text: str) -> list[float]:
    """Return how often each of ``LETTERS`` is in a text."""
    return [float(text.count(letter)) for letter in LETTERS]


class EmbeddingServer:
    """``faults`` has the fault of each of the first requests; "" is none."""

    def __init__(self, key: str | None = None, faults: tuple[str, ...] = ()) -> None:
        self.key, self.faults = key, list(faults)
        self.lock = threading.Lock()
        self.batches: list[list[str]] = []
        """Texts of each request that was answered with vectors."""
        self.in_flight = self.most_in_flight = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _handler(state: EmbeddingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, value: object, status: int = 200, **headers: str) -> None:
            is_page = isinstance(value, str)
            body = value.encode() if is_page else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_page else "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            self.wfile.write(body)

        def _error(self, status: int, message: str) -> None:
            error = {"message": message, "type": "error", "code": "x"}
            self._send({"error": error}, status, retry_after_ms="1", Location="http://evil.test/")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                fault = state.faults.pop(0) if state.faults else ""
                state.in_flight += 1
                state.most_in_flight = max(state.most_in_flight, state.in_flight)
            threading.Event().wait(0.02)
            with state.lock:
                state.in_flight -= 1
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if state.key not in (None, key):
                self._error(401, f"Incorrect key: {key}")
            elif fault.isdigit():
                self._error(int(fault), f"broken for {key}")
            elif fault == "html":
                self._send("<html>gateway</html>")
            else:
                self._answer(body["input"], fault)

        def _answer(self, texts: list[str], fault: str) -> None:
            rows = [
                {"object": "embedding", "index": n, "embedding": counts(text)}
                for n, text in enumerate(texts)
            ]
            if fault == "short":
                rows = rows[1:]
            elif fault == "words":
                rows[0]["embedding"] = ["x"]
            elif fault == "longer":
                rows = [row | {"embedding": [*row["embedding"], 1.0]} for row in rows]
            else:
                with state.lock:
                    state.batches.append(texts)
            self._send({"object": "list", "data": rows[::-1], "model": "m",
                        "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip

    return Handler

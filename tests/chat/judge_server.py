"""A local server that speaks chat completions and batches, and misbehaves on request."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"

Answer = Callable[[dict], str]

ODD_BODIES = {
    "null body": b"null",
    "list body": b"[]",
    "null choice": b'{"choices": [null], "model": "m"}',
    "no message": b'{"choices": [{"index": 0}], "model": "m", "usage": null}',
    "word choice": b'{"choices": ["x"], "model": "m"}',
    "error body": b'{"error": {"message": "upstream is away"}}',
    "free empty choice": b'{"choices": [], "model": "m"}',
}


def same_text(body: dict) -> str:
    """Judge equal texts the same, texts that share a word alike in part, and others different.

    A note is paraphrased by itself, and excerpts are explained by the tokens that are marked.
    """
    content = body["messages"][-1]["content"]
    if content.startswith("<note>"):
        return json.dumps({"paraphrase": content[7:-8]})
    if content.startswith("<excerpts>"):
        return json.dumps({"explanation": " ".join(sorted(set(re.findall("⟦(.*?)⟧", content))))})
    explanations = re.findall(r"<explanation_.>(.*?)</explanation_.>", content)
    a, b = (
        set(re.findall(r'[^\s"\\]+', re.sub(r"\(\d+%\)|active on|,", "", t))) for t in explanations
    )
    label = 3 if a == b else 2 if a & b else 1
    return json.dumps({"evaluation": f"{len(a & b)} words shared", "label": label})


class JudgeServer:
    """``faults`` are drawn at random, by name, with their shares; ``answer`` makes the content."""

    def __init__(
        self,
        answer: Answer = same_text,
        faults: dict[str, float] | None = None,
        models: tuple[str, ...] = ("judge-1",),
        key: str | None = None,
    ) -> None:
        self.answer, self.faults, self.models, self.key = answer, faults or {}, models, key
        self.random = random.Random(0)
        self.lock = threading.Lock()
        self.bodies: list[dict] = []
        self.delivered: Counter[str] = Counter()
        """Number of complete answers to a question, by its user message."""
        self.faulted: Counter[str] = Counter()
        self.headers: list[dict] = []
        self.files: dict[str, bytes] | None = {}
        self.batches: dict[str, dict] = {}
        self.polls: Counter[str] = defaultdict(int)  # type: ignore[assignment]
        self.slow_polls = 1
        self.in_flight = self.most_in_flight = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self) -> str:
        with self.lock:
            drawn, at = self.random.random(), 0.0
            for name, share in self.faults.items():
                at += share
                if drawn < at:
                    self.faulted[name] += 1
                    return name
        return ""

    def completion(self, body: dict, fault: str = "") -> dict:
        content: str | None = self.answer(body)
        message: dict = {"role": "assistant", "content": content, "refusal": None}
        finish = "stop"
        if fault == "empty choice":
            return _completion([])
        if fault == "empty content":
            message["content"] = None
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
        if fault == "malformed JSON":
            message["content"] = content[: len(content) // 3]
        if fault == "label outside":
            message["content"] = '{"evaluation": "so alike", "label": 4}'
        if fault == "text":
            label = json.loads(content)["label"]
            message["content"] = f"At first sight Label: 9, but then\n**Label:** {label}"
        if fault == "list content":
            message["content"] = [{"type": "text", "text": content}]
        if fault == "cut off":
            message["content"], finish = '{"evaluation": "it is', "length"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        answer = _completion([choice])
        return answer | {"usage": None} if fault == "no usage" else answer


def _completion(choices: list[dict]) -> dict:
    usage = {"prompt_tokens": 700, "completion_tokens": 40, "total_tokens": 740}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "judge-1-0613",
            "choices": choices, "usage": usage}  # fmt: skip


def _handler(state: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, value: object, status: int = 200, headers: dict | None = None) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            kind = "application/json" if not isinstance(value, bytes) else "text/plain"
            for name, text in {"Content-Type": kind, "Content-Length": str(len(body)),
                               **(headers or {})}.items():  # fmt: skip
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        def _error(self, status: int, message: str, code: str, headers: dict | None = None) -> None:
            error = {"message": message, "type": "error", "code": code}
            self._send({"error": error}, status, headers)

        def _authorised(self) -> bool:
            state.headers.append(dict(self.headers))
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if state.key is None or given == state.key:
                return True
            self._error(401, f"Incorrect API key provided: {given}", "invalid_api_key")
            return False

        def do_GET(self) -> None:
            if not self._authorised():
                return
            path = self.path.partition("?")[0]
            if path.startswith("/v1/models/"):
                self._error(404, "no such model", "model_not_found")
            elif path == "/v1/models":
                data = [{"id": name, "object": "model", "created": 1, "owned_by": "me"}
                        for name in state.models]  # fmt: skip
                self._send({"object": "list", "data": data})
            elif path == "/v1/batches":
                self._send({"object": "list", "data": list(state.batches.values()),
                            "has_more": False})  # fmt: skip
            elif path.startswith("/v1/batches/"):
                batch = state.batches[path.rsplit("/", 1)[1]]
                state.polls[batch["id"]] += 1
                if state.polls[batch["id"]] > state.slow_polls and batch["status"] != "failed":
                    _complete(state, batch)
                self._send(batch)
            elif path.startswith("/v1/files/"):
                self._send(state.files[path.split("/")[3]])
            else:
                self._error(404, "no such page", "not_found")

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if not self._authorised():
                return
            if self.path == "/v1/chat/completions":
                with state.lock:
                    state.in_flight += 1
                    state.most_in_flight = max(state.most_in_flight, state.in_flight)
                try:
                    self._chat(json.loads(content))
                finally:
                    with state.lock:
                        state.in_flight -= 1
            elif state.files is None:
                self._error(404, "no such page", "not_found")
            elif self.path == "/v1/files":
                name = f"file-{len(state.files)}"
                head, _, rest = content.partition(b"{")
                boundary = head.split(b"\r\n")[0]
                state.files[name] = b"{" + rest.split(b"\r\n" + boundary)[0]
                if not state.files[name].rstrip().endswith(b"}"):
                    state.files[name] = content.split(b"\r\n\r\n", 2)[-1].split(b"\r\n--")[0]
                self._send({"id": name, "object": "file", "bytes": 1, "created_at": 1,
                            "filename": "x.jsonl", "purpose": "batch"})  # fmt: skip
            elif self.path == "/v1/batches":
                settings = json.loads(content)
                batch = {"id": f"batch-{len(state.batches)}", "object": "batch", "created_at": 1,
                         "status": "in_progress", **settings}  # fmt: skip
                state.batches[batch["id"]] = batch
                self._send(batch)

        def _chat(self, body: dict) -> None:
            with state.lock:
                state.bodies.append(body)
            fault = state.fault()
            if body["model"] not in (*state.models, "any"):
                self._error(404, f"The model {body['model']} does not exist", "model_not_found")
            elif fault == "no schema" and "response_format" in body:
                self._error(400, "response_format is not supported", "bad_request")
            elif fault == "429":
                self._error(429, "slow down", "rate_limit", {"retry-after-ms": "5"})
            elif fault == "429 without retry-after":
                self._error(429, "slow down", "rate_limit")
            elif fault == "quota":
                self._error(429, "You exceeded your current quota", "insufficient_quota",
                            {"retry-after-ms": "1"})  # fmt: skip
            elif fault in ("500", "503"):
                self._error(int(fault), "broken", "server_error", {"retry-after-ms": "5"})
            elif fault in ODD_BODIES:
                self._send(ODD_BODIES[fault], 200, {"Content-Type": "application/json"})
            elif fault == "too long":
                self._error(400, "maximum context length is 512 tokens; set max_tokens", "bad")
            elif fault == "no max_tokens" and "max_tokens" in body:
                self._error(400, "use max_completion_tokens instead of max_tokens", "unsupported")
            elif fault == "echo":
                key = self.headers["Authorization"]
                self._error(400, "x" * 285 + key, "bad_request")
            elif fault == "html":
                self._send(b"<html>gateway</html>", 200, {"Content-Type": "text/html"})
            elif fault == "filter":
                self._error(400, "filtered", "content_filter")
            else:
                self._answer(body, fault)

        def _answer(self, body: dict, fault: str) -> None:
            text = json.dumps(state.completion(body, fault)).encode()
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[: len(text) // 2])
                self.close_connection = True
                return
            if fault == "broken body":
                self._send(text[:30].ljust(30), 200, {"Content-Type": "application/json"})
                return
            if fault == "slow":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                for at in range(0, len(text), 200):
                    self.wfile.write(text[at : at + 200])
                    self.wfile.flush()
                    threading.Event().wait(0.05)
            else:
                self._send(text, 200, {"Content-Type": "application/json"})
            with state.lock:
                state.delivered[body["messages"][-1]["content"]] += 1

    return Handler


def _complete(state: JudgeServer, batch: dict) -> None:
    """Answer a batch in another order than the questions have."""
    if batch["status"] == "completed":
        return
    lines = [json.loads(line) for line in state.files[batch["input_file_id"]].splitlines()]
    out, failed = [], []
    for line in reversed(lines):
        fault = state.fault()
        row = {"id": "r", "custom_id": line["custom_id"], "error": None}
        if fault == "filtered row":
            error = {"error": {"message": "filtered", "code": "content_filter"}}
            failed.append(row | {"response": {"status_code": 400, "body": error}})
            continue
        if fault == "failed row":
            error = {"error": {"message": "broken", "code": "server_error"}}
            failed.append(row | {"response": {"status_code": 500, "body": error}})
            continue
        body = state.completion(line["body"], fault)
        out.append(row | {"response": {"status_code": 200, "body": body}})
        state.delivered[line["body"]["messages"][-1]["content"]] += 1
    for name, rows in (("output_file_id", out), ("error_file_id", failed)):
        if rows:
            batch[name] = f"file-{name}-{batch['id']}"
            state.files[batch[name]] = "\n".join(map(json.dumps, rows)).encode()
    batch["status"] = "completed"

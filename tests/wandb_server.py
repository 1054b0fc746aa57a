"""A local server with the part of W&B's API that ``wandb sweep``, ``agent`` and ``sync`` use.

It keeps what it is told, walks the grid of a sweep, and knows neither users nor permissions.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT = "tester", "saematch"
OWNER = {"id": "project", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}


@dataclass
class Artifact:
    """One version of an artifact, and its files as they were uploaded."""

    name: str
    type: str
    committed: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def manifest(self) -> dict[str, Any]:
        """Path to entry, as its manifest says."""
        return json.loads(self.files["wandb_manifest.json"])["contents"]


@dataclass
class Run:
    """Data that the server received of a run."""

    id: str
    sweep: str | None = None
    display_name: str | None = None
    state: str = "pending"
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Each value in ``{"value": ...}``, as W&B keeps it."""
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each UpsertBucket."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return the configuration as a user sees it."""
        return {key: of["value"] for key, of in self.config.items() if key != "_wandb"}

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of a logged table."""
        content = json.loads(self.files[self.summary[table]["path"]])
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


@dataclass
class Sweep:
    """A sweep's configuration, and what is left of its grid."""

    id: str
    text: str
    left: Iterator[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        config = yaml.safe_load(self.text)
        self.program = config["program"]
        parameters = config["parameters"]
        values = [of["values"] if "values" in of else [of["value"]] for of in parameters.values()]
        self.left = (dict(zip(parameters, v, strict=True)) for v in itertools.product(*values))


class Wandb:
    """Everything that the server received, and its answers."""

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.agents: dict[str, Sweep] = {}
        self.lock = threading.Lock()

    def answer(self, query: str, v: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of a GraphQL operation; None for an unknown operation."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        answer = getattr(self, f"_{operation}", None)
        return None if answer is None else answer(v)

    def _Viewer(self, v):
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "teams": teams}}

    _GetDefaultEntity = _GetViewer = _Viewer

    def _ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def _UpsertSweep(self, v):
        sweep = Sweep(f"sweep{len(self.sweeps)}", v["config"])
        self.sweeps[sweep.id] = sweep
        named = {"id": sweep.id, "name": sweep.id, "project": OWNER}
        return {"upsertSweep": {"sweep": named, "configValidationWarnings": []}}

    def _SweepWithRuns(self, v):
        sweep = self.sweeps[v["sweep"]]
        fields = {"id": sweep.id, "name": sweep.id, "state": "RUNNING", "config": sweep.text}
        return {"project": {"sweep": {**fields, "runs": {"edges": []}}}}

    def _CreateAgent(self, v):
        agent = f"agent{len(self.agents)}"
        self.agents[agent] = self.sweeps[v["sweep"]]
        return {"createAgent": {"agent": {"id": agent}}}

    def _Heartbeat(self, v):
        """Return the next point of the grid to an idle agent."""
        sweep, running = self.agents[v["id"]], json.loads(v["runState"])
        commands = []
        if not running:
            chosen = next(sweep.left, None)
            commands = [{"type": "exit"} if chosen is None else self._start(sweep, chosen)]
        agent = {"id": v["id"]}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    def _start(self, sweep: Sweep, chosen: dict[str, Any]) -> dict[str, Any]:
        args = {key: {"value": value} for key, value in chosen.items()}
        n = len(self.runs)
        run = Run(f"run{n}x", sweep.id, f"sunny-sweep-{n}", config=dict(args))
        self.runs[run.id] = run
        return {"type": "run", "run_id": run.id, "program": sweep.program, "args": args}

    def _UpsertBucket(self, v):
        inserted = v["name"] not in self.runs
        run = self.runs.setdefault(v["name"], Run(v["name"]))
        run.upserts.append(v)
        run.sweep = v.get("sweep") or run.sweep
        run.display_name = v.get("displayName") or run.display_name
        run.state = "running"
        if v.get("config"):
            run.config = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        bucket = {**self._bucket(run), "sweepName": run.sweep, "project": OWNER}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _RunResumeStatus(self, v):
        run = self.runs.get(v["name"])
        bucket = None if run is None else self._bucket(run)
        return {"model": {**OWNER, "bucket": bucket}}

    def _bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.display_name,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _CreateRunFiles(self, v):
        files = [{"name": n, "uploadUrl": f"{self.url}/put/run/{v['run']}/{n}"} for n in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, v):
        of = v["input"]
        name = of.get("artifactCollectionName") or of["artifactCollectionNames"][0]
        artifact = Artifact(name, of["artifactTypeName"])
        identity = f"artifact{len(self.artifacts)}"
        self.artifacts[identity] = artifact
        self.runs[of["runName"]].artifacts.append(artifact)
        sequence = {"latestArtifact": None}
        created = {"id": identity, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": created}}

    def _CreateArtifactFiles(self, v):
        nodes = [self._upload(of["artifactID"], of["name"]) for of in v["input"]["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CreateArtifactManifest(self, v):
        return {"createArtifactManifest": self._manifest(v["artifactID"])}

    def _UpdateArtifactManifest(self, v):
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"])}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        file = {"id": "file", **self._upload(artifact, "wandb_manifest.json")}
        return {"artifactManifest": {"id": artifact, "file": file}}

    def _upload(self, artifact: str, name: str) -> dict[str, Any]:
        url = f"{self.url}/put/artifact/{artifact}/{name}"
        identity = {"id": artifact}
        return {"storagePath": name, "uploadUrl": url, "uploadHeaders": [], "artifact": identity}

    def _CommitArtifact(self, v):
        self.artifacts[v["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "d"}}}

    def stream(self, run: Run, payload: dict[str, Any]) -> None:
        """Store a part of a run's history and summary, or its end."""
        for name, chunk in payload.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if "wandb-" in name else []
            if name == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if payload.get("complete"):
            run.exit_code = payload["exitcode"]
            run.state = "failed" if run.exit_code else "finished"

    def put(self, kind: str, owner: str, name: str, content: bytes) -> None:
        """Keep an uploaded file."""
        holder = self.runs[owner] if kind == "run" else self.artifacts[owner]
        holder.files[name] = content


@contextmanager
def serving() -> Iterator[Wandb]:
    """Serve at ``url`` until the block ends."""
    wandb = Wandb()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

        def _say(self, answer: object, status: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self._say({})

        def do_POST(self):
            body = self._body()
            if not self.path.endswith(("/graphql", "/file_stream")):
                return self._say({}, 404)  # W&B's counting of how it is used
            payload = json.loads(body)
            with wandb.lock:
                if self.path.endswith("/file_stream"):
                    wandb.stream(wandb.runs[self.path.split("/")[-2]], payload)
                    return self._say({})
                data = wandb.answer(payload["query"], payload.get("variables") or {})
            if data is None:
                return self._say({"errors": [{"message": "unknown operation"}]}, 400)
            return self._say({"data": data})

        def do_PUT(self):
            _, _, kind, owner, name = self.path.split("/", 4)
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with wandb.lock:
                wandb.put(kind, owner, name, content)
            self._say({})

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, address):
            if not isinstance(sys.exception(), ConnectionError):  # a client that was done
                super().handle_error(request, address)

    server = Server(("127.0.0.1", 0), Handler)
    wandb.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield wandb
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Tiny releases in the layouts of the real ones, and a server with the hub's API."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from conftest import D_MODEL, N_FEATURES, write_sae
from saematch.sae.params import SaeParams

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
NORM = 6.3125
"""Mean norm of what the Llama Scope SAE reads, as its hyperparameters state it."""
THETA = 0.2
"""Its one threshold, in the units of the raw activations."""
SIZES = {"d_in": D_MODEL, "d_sae": N_FEATURES}
RELEASES = {
    "gemma": ("tiny/gemma-scope-2b-pt-res", "gemma_2", "layer_3/width_16k/average_l0_10", SIZES),
    "gemma3": ("tiny/gemma-scope-2-1b-pt", "gemma_3",
               "resid_post_all/layer_3_width_16k_l0_small", {}),
    "llama": ("tiny/Llama3_1-8B-Base-LXR-8x", "llama_scope", "Llama3_1-8B-Base-L3R-8x", {}),
    "qwen": ("tiny/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "qwen_scope", "layer3.sae.pt",
             {**SIZES, "activation_fn_kwargs": {"k": 3}}),
    "saelens": ("tiny/saelens", None, "l3", {}),
}  # fmt: skip
"""Repository, loader, path and overridden settings of each release; its SAE is ``layer_3``."""


def at_layer(path: str, layer: int) -> str:
    """Return a path of ``RELEASES`` for another layer."""
    return re.sub(r"(layer_?|-L|^l)3", rf"\g<1>{layer}", path)


def files(sae: SaeParams, folder: Path, layer: int = 3) -> dict[str, dict[str, bytes]]:
    """Return the files of each release's repository, which all hold the same parameters."""
    t = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    npz = io.BytesIO()
    np.savez(npz, **{name: tensor.numpy() for name, tensor in t.items()})
    lower = {name.replace("W_", "w_"): tensor for name, tensor in t.items()}
    linear = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T.contiguous(),
        "decoder.bias": t["b_dec"],
    }
    hyperparameters = {
        "d_model": sae.d_model,
        "d_sae": sae.n_features,
        "jump_relu_threshold": THETA,
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
    }
    topk = io.BytesIO()
    transposed = {"W_enc": t["W_enc"].T, "W_dec": t["W_dec"].T}
    torch.save({**transposed, "b_enc": t["b_enc"], "b_dec": t["b_dec"]}, topk)
    write_sae(folder, sae, layer=layer)
    contents = {
        "gemma": {"/params.npz": npz.getvalue()},
        "gemma3": {"/params.safetensors": save(lower)},
        "llama": {
            "/hyperparams.json": json.dumps(hyperparameters).encode(),
            "/checkpoints/final.safetensors": save(linear),
        },
        "qwen": {"": topk.getvalue()},
        "saelens": {f"/{path.name}": path.read_bytes() for path in folder.iterdir()},
    }
    return {
        RELEASES[name][0]: {
            at_layer(RELEASES[name][2], layer) + end: content for end, content in held.items()
        }
        for name, held in contents.items()
    }


def write_cache(cache: Path, repos: dict[str, dict[str, bytes]]) -> None:
    """Write repositories as the hub's client keeps them."""
    for repo, held in repos.items():
        folder = cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs/main").write_text(COMMIT)
        for path, content in held.items():
            file = folder / "snapshots" / COMMIT / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@dataclass
class Hub:
    """A hub with its faults."""

    repos: dict[str, dict[str, bytes]]
    commits: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and error code that every request for a repository gets."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Number of answers, by repository, that will break off after half of their bytes."""
    asked: list[str] = field(default_factory=list)
    """Method, path and range of every request."""
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer ``/{owner}/{name}/resolve/{revision}/{path}`` and ``/api/models/{owner}/{name}``.

        The latter tells the files and their sizes, of whatever revision.
        """
        span = request.headers.get("Range", "")
        self.asked.append(f"{request.command} {request.path} {span}".strip())
        if match := re.match(r"/api/models/(\w+/[^/?]+)(/revision/[^/]+)?(\?|$)", request.path):
            return self._describe(request, match[1])
        if request.path.startswith("/api/"):  # such as the templates of chats
            return self._refuse(request, 404, "EntryNotFound")
        parts = request.path.lstrip("/").split("/", 4)
        repo, path = "/".join(parts[:2]), parts[-1]
        if repo in self.errors:
            return self._refuse(request, *self.errors[repo])
        if len(parts) < 5 or repo not in self.repos:
            return self._refuse(request, 404, "RepoNotFound")
        if path not in self.repos[repo]:
            return self._refuse(request, 404, "EntryNotFound")
        content = self.repos[repo][path]
        begin = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        request.send_response(206 if begin else 200)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", self.commits.get(repo, COMMIT))
        request.send_header("Content-Length", str(len(content) - begin))
        if begin:
            last = f"{begin}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", f"bytes {last}")
        request.end_headers()
        if request.command == "GET":
            rest = content[begin:]
            if self.cuts.get(repo, 0) > 0:
                self.cuts[repo] -= 1
                request.wfile.write(rest[: len(rest) // 2])
                request.close_connection = True
            else:
                request.wfile.write(rest)
        return None

    def _describe(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        if repo in self.errors or repo not in self.repos:
            return self._refuse(request, *self.errors.get(repo, (404, "RepoNotFound")))
        files = [{"rfilename": name, "size": len(c)} for name, c in self.repos[repo].items()]
        commit = self.commits.get(repo, COMMIT)
        body = json.dumps({"id": repo, "sha": commit, "siblings": files}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        return None

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            hub.answer(self)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(patch, hub, cache):
    """Make the client use ``hub`` instead of the real one, and ``cache`` as its cache."""
    from huggingface_hub import constants, hf_api

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(hf_api.api, "endpoint", hub.url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))

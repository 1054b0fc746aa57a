"""Measure the rows of ``bench.py`` on weights, decoding and whole processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import GIB, Measured, in_turn, peak_bytes, product, timed

from saematch.core.match import Match
from saematch.evaluate.weights import FoldedPair, decoder_norm_change, mse
from saematch.matching.matchers import TopK
from saematch.matching.objectives.factors import Factors
from saematch.sae.activations import decode, encode
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources.source import ZooSaes


@dataclass(frozen=True)
class Size:
    """Amount of work in the rows."""

    repeats: int
    n_features: int
    d_model: int
    layers: tuple[int, ...]
    """Layers of the embedded model whose SAEs are matched and skipped to."""
    n_texts: int
    """Number of texts of each of the three kinds."""
    max_tokens: int
    """Largest number of tokens in a text."""
    n_tokens: int
    """Number of tokens whose activity is compared."""
    edited_tokens: int
    """Number of tokens in a text whose hidden states are edited."""
    composes_only: bool
    """Whether runs in separate processes only compose their settings."""


FULL = Size(5, 16384, 2304, tuple(range(8)), 12, 128, 32768, 256, composes_only=False)
TINY = Size(1, 100, 8, (4, 5), 1, 16, 50, 16, composes_only=True)

N_ARMS = 4
"""Matches whose weight metrics are computed."""
DEMO_SECONDS = 90.0
"""Bound of the row ``demo``."""


def weights(size: Size) -> Measured:
    """Measure the weight metrics of one pair in four arms."""
    metrics = weight_metrics(size)
    shape = size.n_features, 2 * size.d_model + 1
    x, y = torch.randn(shape), torch.randn(shape)
    return in_turn(metrics, lambda: product(x, y), size.repeats)


def top_k(size: Size) -> Measured:
    """Measure the 20 best partners of each feature against the product alone."""
    x, y = (torch.randn(size.n_features, size.d_model) for _ in range(2))
    factors = Factors(x, y)
    return in_turn(lambda: TopK(20)(factors), lambda: product(x, y), size.repeats)


def weights_memory(size: Size) -> Measured:
    """Measure the memory that the weight metrics need in addition to the SAEs."""
    peak = peak_bytes(weight_metrics(size)) / GIB
    of_sae = 4 * size.n_features * (2 * size.d_model + 1) / GIB
    return Measured(peak, of_sae, peak / of_sae, "GiB")


def weight_metrics(size: Size) -> Callable[[], object]:
    """Return the work: errors and norm changes of random SAEs in four random matches."""
    source, target = (random_sae(layer, size) for layer in (0, 1))
    draws = [torch.Generator().manual_seed(seed) for seed in range(N_ARMS)]
    columns = [torch.randperm(size.n_features, generator=draw) for draw in draws]
    matches = [Match.from_columns(partners, size.n_features) for partners in columns]

    def metrics() -> object:
        pair = FoldedPair(source, target)
        return [(mse(pair, match), decoder_norm_change(pair, match)) for match in matches]

    return metrics


def random_sae(layer: int, size: Size) -> SaeParams:
    """Return an SAE with random weights and thresholds between 0.5 and 1.5."""
    n, d = size.n_features, size.d_model
    W_enc, W_dec, threshold = torch.randn(d, n), torch.randn(n, d), torch.rand(n) + 0.5
    origin = SaeOrigin(layer, "random", str(layer))
    return SaeParams(W_enc, torch.randn(n), W_dec, torch.randn(d), threshold, "jumprelu", origin)


@torch.inference_mode()
def decoding(size: Size) -> Measured:
    """Measure decoding the same number of active features at eight times the width."""
    narrow = ZooSaes("chain", 1024, 20).load(4)
    assert narrow.threshold is not None
    active = encode(narrow, narrow.b_dec + 3.0 * torch.randn(4096, narrow.d_model))
    wide = replace(
        narrow,
        W_enc=narrow.W_enc.repeat(1, 8),
        b_enc=narrow.b_enc.repeat(8),
        W_dec=narrow.W_dec.repeat(8, 1),
        threshold=narrow.threshold.repeat(8),
    )
    shifts = 1024 * torch.randint(8, active.features.shape)
    spread = replace(active, features=active.features + shifts)
    return in_turn(lambda: decode(wide, spread), lambda: decode(narrow, active), size.repeats)


def start_up(size: Size) -> Measured:
    """Measure ``--help`` against importing torch, each in a fresh process."""
    return in_turn(
        lambda: process("-m", "saematch", "--help"),
        lambda: process("-c", "import torch"),
        size.repeats,
    )


def run_memory(size: Size) -> Measured:
    """Measure the peak memory of two whole runs; the first has four times the texts."""
    return _memory_of_runs(size, "arms=[folded]")


def verify_memory(size: Size) -> Measured:
    """Measure the peak memory of two runs that verify; the first has four times the texts."""
    return _memory_of_runs(size, "arms=[folded,written_share]", "evaluations=[verify]")


def _memory_of_runs(size: Size, *settings: str) -> Measured:
    settings += ("logger=none", "layers=[5,6,7]", "cache=null", "name=bench")
    more, less = (
        saematch(size, f"dataset.n_texts={n}", f"run_id=bench-{n}", *settings) / GIB
        for n in (100, 25)
    )
    return Measured(more, less, more / less, "GiB")


def verify(size: Size) -> Measured:
    """Measure ``make verify`` and the demo, one after the other, both without W&B."""
    ours, demo_seconds = (
        timed(partial(saematch, size, f"+experiment={name}", "logger=none", "cache=null",
                      f"run_id=bench-{name}"))
        for name in ("verify", "skip_layers")
    )  # fmt: skip
    return Measured(ours, demo_seconds, ours / demo_seconds)


def demo(size: Size) -> Measured:
    """Measure the demo's command, with W&B logging to a local folder."""
    settings = ["+experiment=skip_layers", "logger=wandb", "cache=null", "run_id=bench"]
    seconds = timed(lambda: saematch(size, *settings))
    return Measured(seconds, DEMO_SECONDS, seconds / DEMO_SECONDS)


def saematch(size: Size, *settings: str) -> int:
    """Run saematch with these settings, and return the process's peak memory in bytes."""
    composing = ("--cfg", "job") if size.composes_only else ()
    return process("-m", "saematch", *composing, *settings)


def process(*arguments: str) -> int:
    """Run Python in a temporary folder, and return its peak memory in bytes.

    Raises ``RuntimeError`` with the end of the process's output if it fails.
    """
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        command = [sys.executable, *arguments]
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _peak_of(child.pid))
            time.sleep(0.02)
        if child.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} failed: {log.read()[-2000:]}")
    return peak


def _peak_of(pid: int) -> int:
    """Return the peak memory of a running process so far, in bytes; 0 if it has ended.

    ``getrusage`` would include the memory of this process, which starts the other one.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(sizes[0]) * 1024 if sizes else 0

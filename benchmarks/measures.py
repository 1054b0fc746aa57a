"""What the rows of ``bench.py`` measure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import GIB, Measured, in_turn, peak_bytes, product, timed
from plain import plain_skip_layers
from saematch.evaluate.plan import Cell, evaluate_texts, plan_splices
from saematch.evaluate.tables import Tables

from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.splice import MATCHLESS, SplicePlan, evaluate_batch
from saematch.evaluate.weights import FoldedPair, decoder_norm_change, mse
from saematch.explain.contexts import TextPass, collect_contexts
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.pairing import Neighbours
from saematch.matching.store import MatchStore
from saematch.sae.activations import decode, encode
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources.source import ZooSaes
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec


@dataclass(frozen=True)
class Size:
    """How much work each row does."""

    repeats: int
    n_features: int
    d_model: int
    layers: tuple[int, ...]
    """Layers of the embedded model whose SAEs are matched and skipped to."""
    n_texts: int
    """Texts of each of three kinds."""
    max_tokens: int
    """Tokens of a text at most."""
    composes_only: bool
    """Whether runs in processes of their own only compose their settings."""


FULL = Size(5, 16384, 2304, tuple(range(8)), 12, 128, composes_only=False)
TINY = Size(1, 100, 8, (4, 5), 1, 16, composes_only=True)

BOTH_SCALES = ("permute", "permute_raw")
ARMS = {
    name: Arm("threshold", Parts(), Random(seed), BOTH_SCALES if seed < 2 else ("permute",))
    for seed, name in enumerate(("folded", "unfolded", "identity", "random"))
}
"""Arms of the experiment skip_layers. Matches are random, since time does not depend on them."""
DEMO_SECONDS = 90.0


@dataclass(frozen=True)
class Workload:
    """The evaluation of the demo."""

    saes: dict[SaeKey, SaeParams]
    plan: SplicePlan
    cells: list[Cell]
    matches: list[Match | None]
    """The match of each cell; None for a strategy without a match."""
    lm: LanguageModel
    batches: tuple[TokenBatch, ...]


@cache
def workload(size: Size) -> Workload:
    """Return the demo's SAEs with random matches, its model and its texts."""
    lm = LmSource("zoo", "saematch-zoo").load()
    source = ZooSaes("chain", 1024, 20)
    saes = {SaeKey("default", layer): source.load(layer) for layer in size.layers}
    pairs = Neighbours()({"default": list(size.layers)})
    with TemporaryDirectory() as folder:
        match_set = match_pairs(saes, pairs, ARMS, MatchStore(Path(folder)), Path(folder))
    plan, cells = plan_splices(saes, match_set, ARMS, MATCHLESS)
    matches = [
        match_set.by_arm[cell.arm][cell.splice.pair] if cell.splice.match else None
        for cell in cells
    ]
    text_sets = ZooTexts(("prose", "docs", "code"), size.n_texts, size.max_tokens).load()
    batches = tuple(
        b for texts in text_sets for b in tokenise(texts, lm, size.max_tokens).batches(16)
    )
    return Workload(saes, plan, cells, matches, lm, batches)


def weights(size: Size) -> Measured:
    """Measure the metrics of one pair in four arms that need only weights."""
    metrics = weight_metrics(size)
    shape = size.n_features, 2 * size.d_model + 1
    x, y = torch.randn(shape), torch.randn(shape)
    return in_turn(metrics, lambda: product(x, y), size.repeats)


def weights_memory(size: Size) -> Measured:
    """Measure the memory that these metrics add to that of the SAEs."""
    peak = peak_bytes(weight_metrics(size)) / GIB
    of_sae = 4 * size.n_features * (2 * size.d_model + 1) / GIB
    return Measured(peak, of_sae, peak / of_sae, "GiB")


def weight_metrics(size: Size) -> Callable[[], object]:
    """Return the work: errors and norm changes of random SAEs in four random matches."""
    source, target = (random_sae(layer, size) for layer in (0, 1))
    draws = [torch.Generator().manual_seed(seed) for seed in range(len(ARMS))]
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


def skip_layers(size: Size) -> Measured:
    """Measure everything that skip_layers does with texts, and check its numbers by the peer's."""
    work = workload(size)
    cells = [(cell.splice, match) for cell, match in zip(work.cells, work.matches, strict=True)]
    numbers: list[tuple[float, float]] = []
    rows: list[dict] = []

    def ours() -> None:
        rows[:] = strategies(work)

    def peer() -> None:
        numbers[:] = plain_skip_layers(work.saes, cells, work.lm, work.batches)

    measured = in_turn(ours, peer, size.repeats)
    for row, (explained, delta) in zip(rows, numbers, strict=True):
        assert abs(row["explained_variance"] - explained) < 1e-3 * max(1, abs(explained)), row
        assert abs(row["delta_loss"] - delta) < 1e-3, row
    return measured


def strategies(work: Workload) -> list[dict]:
    """Evaluate the plan on the texts, and return the rows of the table ``strategies``."""
    with TemporaryDirectory() as folder:
        tokens = {"all texts": work.batches}
        sums = evaluate_texts(work.plan, work.lm, tokens, TrainerSpec("cpu"), Path(folder))
        return Tables(work.plan, sums, Intervals()).strategies(work.cells)["strategies"]


@torch.inference_mode()
def evaluation(size: Size) -> Measured:
    """Measure the evaluation against the blocks and heads that no method can avoid."""
    work = workload(size)
    return in_turn(
        lambda: [evaluate_batch(work.plan, work.lm, batch) for batch in work.batches],
        lambda: [strictly_needed(work, batch) for batch in work.batches],
        size.repeats,
    )


def strictly_needed(work: Workload, batch: TokenBatch) -> None:
    """Run the original once, and bare blocks and the head for each splice."""
    calls: list[tuple[tuple, dict]] = []
    lm = work.lm
    hooks = [
        block.register_forward_pre_hook(lambda _m, a, k: calls.append((a, k)), with_kwargs=True)
        for block in lm.blocks
    ]
    try:
        _, final = lm.capture(batch.ids, ())
    finally:
        for hook in hooks:
            hook.remove()
    states, targets = final[batch.predicts], batch.ids.roll(-1, dims=1)[batch.predicts]
    lm.token_losses(states, targets)
    for splice in work.plan.splices:
        target = splice.pair.target.layer
        for block, (args, kwargs) in list(zip(lm.blocks, calls, strict=True))[target + 1 :]:
            block(*args, **kwargs)
        lm.token_losses(states, targets)


def contexts(size: Size) -> Measured:
    """Measure the pass that keeps where features are active, against forwards and encoding."""
    work = workload(size)

    @torch.inference_mode()
    def bare() -> None:
        for batch in work.batches:
            hidden, _ = work.lm.capture(batch.ids, size.layers)
            for key, sae in work.saes.items():
                encode(sae, hidden[key.layer][batch.counts])

    def ours() -> None:
        with TemporaryDirectory() as folder:
            tokens = {"all texts": work.batches}
            texts = TextPass(work.lm, tokens, TrainerSpec("cpu"), Path(folder) / "left")
            collect_contexts(work.saes, texts, 10, 10, Path(folder))

    return in_turn(ours, bare, size.repeats)


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
    """Measure the peak memory of whole runs, the first of four times the texts."""
    settings = ["arms=[folded]", "logger=none", "layers=[5,6,7]", "cache=null", "name=bench"]
    more, less = (
        saematch(size, f"dataset.n_texts={n}", f"run_id=bench-{n}", *settings) / GIB
        for n in (100, 25)
    )
    return Measured(more, less, more / less, "GiB")


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
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} failed: {log.read()[-2000:]}")
    return usage.ru_maxrss * 1024

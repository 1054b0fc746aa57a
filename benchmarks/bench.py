"""Speed and memory of the main job, as ratios against bounds measured in the same run.

python benchmarks/bench.py [--texts N] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from plain import skip_layers

from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.plan import Cell, evaluate_texts, plan_splices
from saematch.evaluate.splice import MATCHLESS, SplicePlan, evaluate_batch
from saematch.evaluate.tables import Tables
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
from saematch.sae.sources.source import ZooSaes
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec

BOTH_SCALES = ("permute", "permute_raw")
ARMS = {
    name: Arm("threshold", Parts(), Random(seed), BOTH_SCALES if seed < 2 else ("permute",))
    for seed, name in enumerate(("folded", "unfolded", "identity", "random"))
}
"""What skip_layers decodes; which permutation it is does not change the time."""


@dataclass
class Workload:
    """The demo's evaluation."""

    saes: dict
    plan: SplicePlan
    cells: list[Cell]
    matches: dict[Cell, Match | None]
    lm: LanguageModel
    batches: list[TokenBatch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=16, help="texts of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, median of {options.repeats}\n")
    work = workload(options.texts)
    rows = [
        ("skip_layers / plain hooks, whole model", against_plain(work, options.repeats), 0.5),
        ("evaluation / blocks strictly needed", evaluation(work, options.repeats), 1.3),
        ("contexts / forward and encoding alone", contexts(work, options.repeats), 2.0),
        ("decoding at width 8,192 / 1,024, same L0", decoding(options.repeats), 1.5),
        ("--help / import torch", start_up(options.repeats), 2.0),
        ("memory at 100 texts / 25 texts", memory(), 1.1),
        ("demo, seconds", demo(), 90.0),
    ]
    print(f"{'measured':<44} {'value':>8} {'bound':>8}")
    for name, value, bound in rows:
        print(f"{name:<44} {value:8.2f} {bound:8.2f} {'' if value <= bound else '  MISSED'}")


def workload(n_texts: int) -> Workload:
    lm = LmSource("zoo", "saematch-zoo").load()
    source = ZooSaes("chain", 1024, 20)
    saes = {SaeKey("default", layer): source.load(layer) for layer in source.layers()}
    pairs = Neighbours()({"default": source.layers()})
    with TemporaryDirectory() as folder:
        matches = match_pairs(saes, pairs, ARMS, MatchStore(Path(folder)), Path(folder))
    plan, cells = plan_splices(saes, matches, ARMS, MATCHLESS)
    of_cell = {
        cell: matches.by_arm[cell.arm][cell.splice.pair] if cell.splice.match else None
        for cell in cells
    }
    sets = ZooTexts(("prose", "docs", "code"), n_texts, 128).load()
    batches = [b for s in sets for b in tokenise(s, lm, 128).batches(16)]
    return Workload(saes, plan, cells, of_cell, lm, batches)


def against_plain(work: Workload, repeats: int) -> float:
    """Everything that skip_layers does with texts, its intervals included, against the peer."""
    asked = [(cell.splice, work.matches[cell]) for cell in work.cells]
    ratios = []
    for _ in range(repeats):
        theirs: list[tuple[float, float]] = []
        plain = timed(
            lambda t=theirs: t.extend(skip_layers(work.saes, asked, work.lm, work.batches))
        )
        rows: list[dict] = []
        ours = timed(lambda r=rows: r.extend(strategies(work)))
        for row, (explained, delta) in zip(rows, theirs, strict=True):
            assert abs(row["explained_variance"] - explained) < 1e-3 * max(1, abs(explained)), row
            assert abs(row["delta_loss"] - delta) < 1e-3, row
        ratios.append(ours / plain)
    return median(ratios)


def contexts(work: Workload, repeats: int) -> float:
    """The pass that keeps where features are active, against what it cannot do without."""
    layers = tuple(key.layer for key in work.saes)

    @torch.inference_mode()
    def bare() -> None:
        for batch in work.batches:
            hidden, _ = work.lm.capture(batch.ids, layers)
            for key, sae in work.saes.items():
                encode(sae, hidden[key.layer][batch.counts])

    def ours() -> None:
        texts = TextPass(work.lm, {"all texts": tuple(work.batches)}, TrainerSpec("cpu"))
        with TemporaryDirectory() as folder:
            collect_contexts(work.saes, texts, 10, 10, Path(folder))

    return median([timed(ours) / timed(bare) for _ in range(repeats)])


def strategies(work: Workload) -> list[dict]:
    with TemporaryDirectory() as folder:
        tokens = {"all texts": tuple(work.batches)}
        spec = TrainerSpec(accelerator="cpu")
        sums = evaluate_texts(work.plan, work.lm, tokens, spec, Path(folder))
        return Tables(work.plan, sums, Intervals()).strategies(work.cells)["strategies"]


@torch.inference_mode()
def evaluation(work: Workload, repeats: int) -> float:
    """Everything evaluated / the blocks and heads that no method can do without."""
    ratios = []
    for _ in range(repeats):
        whole = timed(lambda: [evaluate_batch(work.plan, work.lm, b) for b in work.batches])
        needed = timed(lambda: [strictly_needed(work, b) for b in work.batches])
        ratios.append(whole / needed)
    return median(ratios)


def strictly_needed(work: Workload, batch: TokenBatch) -> None:
    """Run the original once, and bare blocks and the head for each change of the model."""
    calls: list[tuple[tuple, dict]] = []
    lm = work.lm
    hooks = [
        block.register_forward_pre_hook(lambda _m, a, k: calls.append((a, k)), with_kwargs=True)
        for block in lm.blocks
    ]
    _, final = lm.capture(batch.ids, ())
    for hook in hooks:
        hook.remove()
    states, targets = final[batch.predicts], batch.ids.roll(-1, dims=1)[batch.predicts]
    lm.token_losses(states, targets)
    for splice in work.plan.splices:
        later = splice.pair.target.layer
        for block, (args, kwargs) in list(zip(lm.blocks, calls, strict=True))[later + 1 :]:
            block(*args, **kwargs)
        lm.token_losses(states, targets)


@torch.inference_mode()
def decoding(repeats: int) -> float:
    """Time of decoding the same number of active features at eight times the width."""
    source = ZooSaes("chain", 1024, 20)
    narrow = source.load(4)
    x = narrow.b_dec + 3.0 * torch.randn(4096, narrow.d_model)
    active = encode(narrow, x)
    from dataclasses import replace

    wide = replace(
        narrow,
        W_enc=narrow.W_enc.repeat(1, 8),
        b_enc=narrow.b_enc.repeat(8),
        W_dec=narrow.W_dec.repeat(8, 1),
        threshold=narrow.threshold.repeat(8),
    )
    spread = replace(
        active, features=active.features + 1024 * torch.randint(8, active.features.shape)
    )
    return median(
        timed(lambda: decode(wide, spread)) / timed(lambda: decode(narrow, active))
        for _ in range(max(repeats, 5))
    )


def start_up(repeats: int) -> float:
    """``--help`` against importing torch, in fresh processes taken in turn."""
    ratios = [
        command("-m", "saematch", "--help") / command("-c", "import torch") for _ in range(repeats)
    ]
    return median(ratios)


def memory() -> float:
    """Peak memory of whole runs with four times the texts."""
    peaks = [peak(n) for n in (25, 100)]
    return peaks[1] / peaks[0]


def peak(n_texts: int) -> int:
    """Peak resident memory of a run, in KiB."""
    settings = [
        f"dataset.n_texts={n_texts}",
        "arms=[folded]",
        "logger=none",
        "layers=[5,6,7]",
        "cache=null",
    ]
    settings += [f"run_id=bench-{os.getpid()}-{n_texts}", "name=bench"]
    done = subprocess.Popen([sys.executable, "-m", "saematch", *settings], **QUIET)
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0, "the run failed"
    return usage.ru_maxrss


def demo() -> float:
    """Seconds of the demo's command."""
    run = f"run_id=bench-{os.getpid()}"
    return command("-m", "saematch", "+experiment=skip_layers", "logger=wandb", "cache=null", run)


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def command(*arguments: str) -> float:
    """Seconds of a whole Python process."""
    root = Path(__file__).parents[1]
    return timed(
        lambda: subprocess.run([sys.executable, *arguments], cwd=root, check=True, **QUIET)
    )


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

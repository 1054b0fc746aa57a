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
from pathlib import Path
from statistics import median

import torch

from saematch.data.texts import ZooTexts
from saematch.data.tokens import TokenBatch, tokenise
from saematch.evals.activations import decode, encode
from saematch.evals.splice import Cell, SplicePlan, evaluate_batch
from saematch.evals.stats import Totals
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.assignment import Random
from saematch.matching.objectives import Parts
from saematch.sae.source import ZooSaes

CELLS = (
    Cell("folded", "permute"),
    Cell("folded", "permute_raw"),
    Cell("unfolded", "permute"),
    Cell("unfolded", "permute_raw"),
    Cell("identity", "permute"),
    Cell("random", "permute"),
    Cell("none", "reconstruct_current"),
    Cell("none", "reconstruct_previous"),
    Cell("none", "drop"),
)
"""What skip_layers evaluates at each layer pair."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=16, help="texts of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, median of {options.repeats}\n")
    plan, lm, batches = workload(options.texts)
    rows = [
        (
            "evaluation / blocks strictly needed",
            evaluation(plan, lm, batches, options.repeats),
            1.3,
        ),
        ("decoding at width 8,192 / 1,024, same L0", decoding(options.repeats), 1.5),
        ("--help / import torch", start_up(options.repeats), 2.0),
        ("memory at 100 texts / 25 texts", memory(), 1.1),
        ("demo, seconds", demo(), 90.0),
    ]
    print(f"{'measured':<44} {'value':>8} {'bound':>8}")
    for name, value, bound in rows:
        print(f"{name:<44} {value:8.2f} {bound:8.2f} {'' if value <= bound else '  MISSED'}")


def workload(n_texts: int) -> tuple[SplicePlan, LanguageModel, list[TokenBatch]]:
    """Return the demo's plan; which permutation is decoded does not change the time."""
    lm = LmSource("zoo", "saematch-zoo").load()
    source = ZooSaes("chain", 1024, 20)
    saes = {layer: source.load(layer) for layer in source.layers()}
    pairs = tuple(zip(list(saes)[:-1], list(saes)[1:], strict=True))
    matches = tuple(Random(0)(Parts().factors(saes[a], saes[b])) for a, b in pairs)
    arms = dict.fromkeys(("folded", "unfolded", "identity", "random"), matches)
    plan = SplicePlan(pairs, saes, arms, CELLS)
    sets = ZooTexts(("prose", "docs", "code"), n_texts, 128).load()
    return plan, lm, [b for s in sets for b in tokenise(s, lm.tokenizer, 128, 16)]


@torch.inference_mode()
def evaluation(
    plan: SplicePlan, lm: LanguageModel, batches: list[TokenBatch], repeats: int
) -> float:
    """Everything evaluated / the blocks and heads that no method can do without."""
    ratios = []
    for _ in range(repeats):
        totals = Totals(plan.shapes)
        whole = timed(lambda t=totals: [evaluate_batch(plan, lm, b, t) for b in batches])
        needed = timed(lambda: [strictly_needed(plan, lm, b) for b in batches])
        ratios.append(whole / needed)
    return median(ratios)


def strictly_needed(plan: SplicePlan, lm: LanguageModel, batch: TokenBatch) -> None:
    """Run the original once, and bare blocks and the head for each pair and cell."""
    calls: list[tuple[tuple, dict]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _m, a, k: calls.append((a, k)), with_kwargs=True)
        for block in lm.blocks
    ]
    _, final = lm.capture(batch.ids, ())
    for hook in hooks:
        hook.remove()
    states, targets = final[batch.predicts], batch.ids.roll(-1, dims=1)[batch.predicts]
    lm.token_losses(states, targets)
    for _, later in plan.pairs:
        for _ in plan.cells:
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
    settings = [f"dataset.n_texts={n_texts}", "arms=[folded]", "logger=none", "layers=[5,6,7]"]
    settings += [f"run_id=bench-{os.getpid()}-{n_texts}", "name=bench"]
    done = subprocess.Popen([sys.executable, "-m", "saematch", *settings], **QUIET)
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0, "the run failed"
    return usage.ru_maxrss


def demo() -> float:
    """Seconds of the demo's command."""
    run = f"run_id=bench-{os.getpid()}"
    return command("-m", "saematch", "+experiment=skip_layers", "logger=wandb", run)


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

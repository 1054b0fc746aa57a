"""Time of the pieces of a large run, and what they add up to for 26 layers: docs/scaling.md.

python benchmarks/scaling.py [--widths F ...] [--repeats N] [--tiny] [--page FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from bench import MARKS, conditions
from measures import FULL, random_sae
from measuring import product, timed
from transformers import Gemma2Config, Gemma2Model

from saematch.core.match import Match
from saematch.evaluate.weights import FoldedPair, decoder_norm_change, mse
from saematch.matching.matchers.top_k import TopK
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.planted import planted
from saematch.matching.solver.solve import solve_assignment
from saematch.sae.activations import encode
from saematch.sae.params import SaeParams

LAYERS, TOKENS = 26, 100_000
"""Number of layers with an SAE, and of tokens that the run reads."""
TIMED_TOKENS = (16, 256)
"""Texts, and tokens in each, of a measured pass."""
EVENTS = 13
"""Edited tokens of ``verify`` for a source feature, at most: 8 on calibration texts, 3 removals, an
injection and a joint removal."""
EDIT = 1.2
"""Time of an edited token in a block, relative to a plain token (docs/benchmarks.md, ``edits``)."""
VOCABULARY = 256_000
"""Rows of the model's head."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its SAEs."""

    n_features: int
    d_model: int = 2304
    texts: tuple[int, int] = TIMED_TOKENS


@dataclass(frozen=True)
class Seconds:
    """Seconds of each measured piece; those of tokens are for one token."""

    product: float
    match: float
    top_k: float
    weights: float
    encode: float
    block: float


def measured(shape: Shape, repeats: int) -> Seconds:
    """Return the medians of the seconds of every piece; matches are measured once."""

    def seconds(work: Callable[[], object], n: int = repeats) -> float:
        return median(timed(work) for _ in range(n))

    size = replace(FULL, n_features=shape.n_features, d_model=shape.d_model)
    saes = [random_sae(layer, size) for layer in (0, 1)]
    states = torch.randn(shape.texts[0] * shape.texts[1], shape.d_model)
    return Seconds(
        product=seconds(bare_product(shape)),
        match=seconds(match(shape), 1),
        top_k=seconds(lambda: TopK(k=20)(DecoderCosine().factors(*saes)), 1),
        weights=seconds(weights(*saes)),
        encode=seconds(lambda: encode(saes[0], states)) / len(states),
        block=seconds(block(shape)) / len(states),
    )


def bare_product(shape: Shape) -> Callable[[], object]:
    """Return the product of both sides' vectors, which have all parts of both SAEs."""
    x = torch.randn(shape.n_features, 2 * shape.d_model + 1)
    return lambda: product(x, x)


def match(shape: Shape) -> Callable[[], object]:
    """Return the optimal match of a pair of which 70 % of the features persist."""
    factors = planted(shape.n_features, 2 * shape.d_model + 1, persist=0.7).factors
    solve_assignment(factors.X_A[:64], factors.X_B[:64])  # compile
    return lambda: solve_assignment(factors.X_A, factors.X_B)


def weights(source: SaeParams, target: SaeParams) -> Callable[[], object]:
    """Return the errors and norm changes of one match."""
    partners = Match.from_columns(torch.randperm(source.n_features), target.n_features)

    def metrics() -> object:
        pair = FoldedPair(source, target)
        return mse(pair, partners), decoder_norm_change(pair, partners)

    return metrics


def block(shape: Shape) -> Callable[[], object]:
    """Return a pass through one block of Gemma 2 2B's shape in float32, with random weights."""
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=shape.d_model,
        intermediate_size=4 * shape.d_model,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=shape.d_model // 9,
    )
    model = Gemma2Model(config).eval()
    ids = torch.zeros(shape.texts, dtype=torch.int64)

    def forward() -> object:
        with torch.inference_mode():
            return model(ids, use_cache=False)

    return forward


def computed(shape: Shape, seconds: Seconds) -> dict[str, float]:
    """Return the seconds of each stage of a run with one arm, computed from measured pieces."""
    pairs = LAYERS - 1
    head = VOCABULARY * shape.d_model / block_weights(shape) * seconds.block
    edited = EDIT * seconds.block + seconds.encode
    return {
        "match, optimal permutation": pairs * seconds.match,
        "match, top 20 by decoder cosine": pairs * seconds.top_k,
        "metrics of weights, one arm": pairs * seconds.weights,
        "one pass over the texts": TOKENS * LAYERS * (seconds.block + seconds.encode),
        "skip layers, one strategy": TOKENS * pairs * (LAYERS / 2 * seconds.block + head),
        "verify, at most": pairs * EVENTS * shape.n_features * edited,
    }


def block_weights(shape: Shape) -> float:
    """Return the number of weights in the matrices of a block."""
    d, heads = shape.d_model, 8 * (shape.d_model // 9)
    return 3 * d * 4 * d + d * heads * (2 + 2 * 4 / 8)


def gib(shape: Shape) -> dict[str, float]:
    """Return the sizes of files in GiB, which follow from the formats."""
    n, d, pairs = shape.n_features, shape.d_model, LAYERS - 1
    entry = 8 + 8 + 8  # row, column, weight
    return {
        "SAEs, float32": LAYERS * 4 * (n * (2 * d + 2) + d) / 2**30,
        "matches, one partner": pairs * n * entry / 2**30,
        "matches, 20 partners": pairs * 20 * n * (entry + 8) / 2**30,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every width, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--computed", type=int, nargs="*", default=[65536], metavar="F",
                        help="widths computed from the largest measured one")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to check that it works")
    parser.add_argument("--page", type=Path, help="page that receives the tables")
    options = parser.parse_args(arguments)
    shapes = [Shape(n) for n in options.widths]
    if options.tiny:
        shapes = [Shape(n, 72, (2, 8)) for n in (64, 128)]
    pieces = {shape: measured(shape, options.repeats) for shape in shapes}
    last = shapes[-1]
    further = [replace(last, n_features=n) for n in options.computed]
    larger = {shape: scaled(pieces[last], shape.n_features / last.n_features) for shape in further}
    tables = "\n".join([*measured_table(pieces), "", *computed_table({**pieces, **larger})])
    text = f"{conditions(replace(FULL, repeats=options.repeats))}.\n\n{tables}\n"
    if options.page is None:
        print(text)
        return
    before, rest = options.page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    options.page.write_text(before + MARKS[0] + text + MARKS[1] + after)


def scaled(seconds: Seconds, ratio: float) -> Seconds:
    """Return the pieces of a width ``ratio`` times as large."""
    of_pairs = {name: getattr(seconds, name) * ratio**2 for name in ("product", "match", "top_k")}
    linear = {name: getattr(seconds, name) * ratio for name in ("weights", "encode")}
    return replace(seconds, **of_pairs, **linear)


def measured_table(pieces: dict[Shape, Seconds]) -> list[str]:
    """Return the lines of the table of measured pieces."""
    rows = {
        "float32 product of a pair, D = 2 d + 1": "product",
        "optimal permutation of a pair (measured once)": "match",
        "top 20 by decoder cosine of a pair (measured once)": "top_k",
        "metrics of weights of a match": "weights",
        "encode 1,000 tokens with an SAE": "encode",
        "run 1,000 tokens through a block": "block",
    }
    header = [f"{shape.n_features:,} x {shape.d_model:,}" for shape in pieces]
    lines = [f"| measured, seconds | {' | '.join(header)} |", "| --- |" + " --- |" * len(header)]
    for label, name in rows.items():
        scale = 1000 if name in ("encode", "block") else 1
        cells = [f"{scale * getattr(seconds, name):.3g}" for seconds in pieces.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def computed_table(pieces: dict[Shape, Seconds]) -> list[str]:
    """Return the lines of the table of stages, all of them computed."""
    header = [f"{shape.n_features:,} features" for shape in pieces]
    lines = [f"| computed, {LAYERS} layers, {TOKENS:,} tokens | {' | '.join(header)} |"]
    lines.append("| --- |" + " --- |" * len(header))
    stages = [computed(shape, seconds) for shape, seconds in pieces.items()]
    for name in stages[0]:
        lines.append(f"| {name} | {' | '.join(duration(of[name]) for of in stages)} |")
    sizes = [gib(shape) for shape in pieces]
    for name in sizes[0]:
        lines.append(f"| disk: {name} | {' | '.join(f'{of[name]:.3g} GiB' for of in sizes)} |")
    return lines


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least one."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


if __name__ == "__main__":
    sys.exit(main())

"""Measure the rows of ``bench.py`` on edited hidden states."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from measures import Size
from measuring import Measured, in_turn
from transformers import LlamaConfig, LlamaForCausalLM

from saematch.lm.edits import EditRunner, Edits
from saematch.lm.hooks import LanguageModel, hidden_of

N_TEXTS = 16
EDITS_PER_TOKEN = 13 / 16
"""Number of edits of a text, divided by its tokens."""
SOURCE, TARGET = 3, 4
N_NAIVE = 16
"""Number of edits that the plain implementation runs."""


@cache
def workload(size: Size) -> tuple[EditRunner, Edits]:
    """Return random edits of random texts in a random Llama of eight blocks and width 512."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    lm = LanguageModel(model, None, "random Llama")
    ids = torch.randint(1024, (N_TEXTS, size.edited_tokens))
    hidden, _ = lm.capture(ids, (SOURCE,))
    texts = torch.randint(N_TEXTS, (int(EDITS_PER_TOKEN * ids.numel()),))
    positions = torch.randint(size.edited_tokens, texts.shape)
    states = hidden[SOURCE][texts, positions]
    edits = Edits(texts, positions, states + states.std() * torch.randn(states.shape))
    runner = EditRunner(lm, ids, hidden)
    runner.run(SOURCE, TARGET, edits)  # tests the model, and stores the keys and values
    return runner, edits


@torch.inference_mode()
def edits(size: Size) -> Measured:
    """Measure edits through one block against as many tokens in one call of the block."""
    runner, batch = workload(size)
    block, calls = runner.lm.blocks[TARGET], []
    hook = block.register_forward_pre_hook(
        lambda _module, args, settings: calls.append((args, settings)), with_kwargs=True
    )
    rows = len(batch) // size.edited_tokens
    try:
        runner.lm.capture(runner.ids[:rows], ())
    finally:
        hook.remove()
    ((args, settings),) = calls
    return in_turn(
        lambda: runner.run(SOURCE, TARGET, batch),
        lambda: block(*args, **settings),
        size.repeats,
    )


@torch.inference_mode()
def naive(size: Size) -> Measured:
    """Measure edits against the whole model with hooks, in seconds an edit."""
    runner, batch = workload(size)
    seconds = in_turn(
        lambda: runner.run(SOURCE, TARGET, batch),
        lambda: plain_edits(runner, batch),
        size.repeats,
    )
    ours, peer = seconds.ours / len(batch), seconds.peer / N_NAIVE
    return replace(seconds, ours=ours, peer=peer, ratio=seconds.ratio * N_NAIVE / len(batch))


def plain_edits(runner: EditRunner, batch: Edits) -> torch.Tensor:
    """Run the whole model on a copy of the text for each of the first edits, with two hooks."""
    texts, positions = batch.texts[:N_NAIVE], batch.positions[:N_NAIVE]
    rows, states = torch.arange(N_NAIVE), []

    def edit(_module: object, _args: object, output: object) -> None:
        hidden_of(output)[rows, positions] = batch.states[:N_NAIVE]

    lm = runner.lm
    hooks = [
        lm.blocks[SOURCE].register_forward_hook(edit),
        lm.blocks[TARGET].register_forward_hook(
            lambda _module, _args, output: states.append(hidden_of(output)[rows, positions])
        ),
    ]
    try:
        lm.model(input_ids=runner.ids[texts], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states[0]

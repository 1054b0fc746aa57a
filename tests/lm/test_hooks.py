"""Continuing from a hidden state gives the model's own logits in every architecture."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from architectures import ARCHITECTURES, build
from saematch.lm.hooks import HEAD_TOKENS, find_blocks
from saematch.lm.self_test import self_test


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return build(request.param)


def test_the_self_test_passes(lm):
    self_test(lm)
    assert not lm.runs_earlier_blocks


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def test_continuing_from_the_true_state_gives_the_same_logits(lm, ids):
    expected = lm.model(input_ids=ids).logits
    hidden, final = lm.capture(ids, (0, 1, 2, 3))
    torch.testing.assert_close(lm.logits(final), expected)
    for layer in range(4):
        torch.testing.assert_close(lm.logits(lm.continue_from(layer, hidden[layer], ids)), expected)


def test_skipped_blocks_are_not_evaluated_and_later_ones_are(lm, ids):
    hidden, _ = lm.capture(ids, (1,))
    expected = lm.model(input_ids=ids).logits
    broken = [p for block in lm.blocks[:2] for p in block.parameters()]
    kept = [p.clone() for p in broken]
    for p in broken:
        p.fill_(float("nan"))
    try:
        after = lm.logits(lm.continue_from(1, hidden[1], ids))
        torch.testing.assert_close(after, expected)
    finally:
        for p, values in zip(broken, kept, strict=True):
            p.copy_(values)
    changed = lm.logits(lm.continue_from(1, hidden[1] + torch.randn_like(hidden[1]), ids))
    assert not torch.allclose(changed, expected)


def test_the_model_is_whole_again_after_a_splice(lm, ids):
    before = lm.model(input_ids=ids).logits
    hidden, _ = lm.capture(ids, (2,))
    lm.continue_from(2, torch.zeros_like(hidden[2]), ids)
    torch.testing.assert_close(lm.model(input_ids=ids).logits, before)


PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Largest difference of a batch from its single texts, relative to the largest hidden state. In
bfloat16, with 8 bits, sums in another order differ by some units in the last place."""


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_batch_of_unequal_lengths_equals_its_texts_one_by_one(lm, ids, dtype):
    lengths = (12, 7, 3)
    texts = [row[:length] for row, length in zip(ids[[0, 1, 0]], lengths, strict=True)]
    padded = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=5)
    with _in(lm, dtype):
        together = _through(lm, padded)
        for number, text in enumerate(texts):
            alone = _through(lm, text[None])
            for name, states in alone.items():
                ours = together[name][number, : states.shape[1]].float()
                error = (ours - states[0].float()).abs().max() / states.float().abs().max()
                assert error <= PRECISIONS[dtype], (name, len(text))


def _through(lm, ids):
    """Return hidden states, hidden states after a splice, and the losses of both."""
    seen, final = lm.capture(ids, (0, 2, 3))
    seen = {f"layer {layer}": states for layer, states in seen.items()}
    seen["final"] = final
    for layer in (0, 2):
        seen[f"from {layer}"] = lm.continue_from(layer, 0.5 * seen[f"layer {layer}"], ids)
    targets = ids[:, 1:].flatten()
    for name in ("final", "from 0", "from 2"):
        losses = lm.token_losses(seen[name][:, :-1].flatten(0, 1), targets)
        seen[f"losses {name}"] = losses.view(len(ids), -1, 1)
    return seen


@contextmanager
def _in(lm, dtype):
    lm.to(dtype)
    try:
        yield
    finally:
        lm.to(torch.float32)


def test_the_vision_tower_is_never_taken():
    lm = build("Gemma3")
    assert len(lm.model.model.vision_tower.encoder.layers) == lm.n_layers == 4
    assert all("vision" not in type(block).__name__.lower() for block in lm.blocks)
    assert lm.d_model == 32


@pytest.mark.parametrize("chunk", [1, 5, 11, 12])
def test_losses_are_the_cross_entropy_in_any_chunk(ids, chunk, monkeypatch):
    monkeypatch.setitem(HEAD_TOKENS, "cpu", chunk)
    lm = build("Llama")
    _, final = lm.capture(ids, ())
    logits = lm.model(input_ids=ids).logits[0, :-1]
    expected = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    torch.testing.assert_close(lm.token_losses(final[0, :-1], ids[0, 1:]), expected)


def test_a_model_without_one_list_of_blocks_is_refused():
    with pytest.raises(ValueError, match="0 lists of 4 blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)), 4)

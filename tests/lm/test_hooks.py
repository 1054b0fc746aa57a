"""Continuing from a hidden state gives the model's own logits, whatever the architecture."""

import pytest
import torch
from torch import nn

from saematch.lm.hooks import HEAD_TOKENS, LanguageModel, find_blocks

SHARED = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {**SHARED, "intermediate_size": 64, "num_key_value_heads": 2}
ARCHITECTURES = {
    "Llama": GROUPED,
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32,
             "bos_token_id": 0, "eos_token_id": 0},
    "GPTNeoX": {**SHARED, "intermediate_size": 64},
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "Qwen2": GROUPED,
    "Gemma3Text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "OPT": {**SHARED, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4},
}  # fmt: skip


def build(architecture):
    import transformers

    names = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    torch.manual_seed(0)
    model = getattr(transformers, names.get(architecture, f"{architecture}ForCausalLM"))(config)
    return LanguageModel(model.eval().requires_grad_(False), None, architecture)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return build(request.param)


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


def test_right_padding_changes_nothing_before_it(lm, ids):
    alone = lm.capture(ids[:1, :7], (1,))[0][1]
    padded = ids.clone()
    padded[0, 7:] = 3
    torch.testing.assert_close(lm.capture(padded, (1,))[0][1][:1, :7], alone)


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

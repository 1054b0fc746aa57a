"""Edits have the effects that a plain forward with hooks has, in every architecture."""

import logging

import pytest
import torch

from architectures import ARCHITECTURES, build
from saematch.lm import clean_keys
from saematch.lm import edits as module
from saematch.lm.edits import EditRunner, Edits
from saematch.lm.hooks import hidden_of

JOINED = {"Llama", "GPT2", "GPTNeoX", "Gemma2", "Qwen2", "Gemma3Text", "Gemma3", "Qwen3", "OPT"}
"""Architectures whose edits run as one sequence."""
LENGTH = 12
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return build(request.param).double()


@pytest.fixture(scope="module")
def ids():
    """Return three texts; the second ends at its sixth token."""
    ids = torch.randint(2, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[1, 6:] = 0
    return ids


def edits_of(lm, ids, hidden):
    """Return edits with two at one token, many in one text, and none in the third."""
    draw = torch.Generator().manual_seed(2)
    positions = torch.cat([torch.randperm(LENGTH, generator=draw), torch.tensor([3, 11, 2, 5, 0])])
    texts = torch.tensor([0] * (LENGTH + 2) + [1] * 3)
    noise = torch.randn(len(texts), lm.d_model, generator=draw).to(hidden)
    return Edits(texts, positions, hidden[texts, positions] * 0.3 + noise * hidden.std())


def plain(lm, ids, source, target, edits):
    """Run the whole model for each edit, with a hook that replaces one hidden state."""
    rows = []
    for text, position, state in zip(edits.texts, edits.positions, edits.states, strict=True):
        seen = {}

        def replace(_module, _args, output, position=position, state=state):
            hidden_of(output)[:, position] = state

        def keep(_module, _args, output, seen=seen):
            seen["states"] = hidden_of(output)

        hooks = [
            lm.blocks[source].register_forward_hook(replace),
            lm.blocks[target].register_forward_hook(keep),
        ]
        lm.model(input_ids=ids[text][None], use_cache=False)
        for hook in hooks:
            hook.remove()
        rows.append(seen["states"][0, position])
    return torch.stack(rows)


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 3), (2, 3), (0, 3)])
def test_the_effects_are_those_of_a_plain_forward(lm, ids, source, target):
    hidden, _ = lm.capture(ids, (0, 1, 2))
    runner, edits = EditRunner(lm, ids, hidden), edits_of(lm, ids, hidden[source])
    expected = plain(lm, ids, source, target, edits)
    # Gemma 2's own code computes the softmax in float32.
    bounds = {"rtol": 1e-5, "atol": 1e-5} if lm.name == "Gemma2" else EXACT
    torch.testing.assert_close(runner.run(source, target, edits), expected, **bounds)
    torch.testing.assert_close(runner.run_copies(source, target, edits), expected, **bounds)
    assert lm.joins_edits == {(4, lm.name.startswith("Gemma")): lm.name in JOINED}
    if lm.name in JOINED:
        torch.testing.assert_close(runner.run_joined(source, target, edits), expected, **bounds)


@pytest.mark.parametrize("path", ["run_joined", "run_copies"])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text"])
def test_edits_do_not_influence_each_other_and_calls_do_not_matter(
    ids, architecture, path, monkeypatch
):
    lm = build(architecture).double()
    hidden, _ = lm.capture(ids, (1,))
    edits = edits_of(lm, ids, hidden[1])
    run = getattr(EditRunner(lm, ids, hidden), path)
    together = run(1, 3, edits)
    for number in range(len(edits)):
        part = slice(number, number + 1)
        alone = run(1, 3, Edits(edits.texts[part], edits.positions[part], edits.states[part]))
        torch.testing.assert_close(alone, together[part], **EXACT)
    for queries, scores in ((1, 1), (2, 1), (3, 3 * module.MIN_KEYS), (5, 2**20)):
        monkeypatch.setattr(module, "MAX_QUERIES", queries)
        monkeypatch.setitem(module.MAX_SCORES, "cpu", scores)
        torch.testing.assert_close(run(1, 3, edits), together, **EXACT)


def test_calls_are_bounded(ids, monkeypatch):
    """Memory does not grow with the number of edits."""
    lm = build("Llama")
    hidden, _ = lm.capture(ids, (1,))
    runner, n = EditRunner(lm, ids, hidden), 500
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(3, (n,), generator=draw)
    positions = torch.randint(LENGTH, (n,), generator=draw)
    edits = Edits(texts, positions, hidden[1][texts, positions])
    monkeypatch.setitem(module.MAX_SCORES, "cpu", 128 * module.MIN_KEYS)
    for path in (runner.run_joined, runner.run_copies):
        sizes = []
        hook = lm.blocks[2].register_forward_hook(
            lambda _m, _a, output, sizes=sizes: sizes.append(hidden_of(output).shape[:2].numel())
        )
        result = path(1, 2, edits)
        hook.remove()
        assert max(sizes) <= 128 and sum(sizes) <= 16 * n
        expected = lm.continue_to(1, 2, hidden[1], ids)[texts, positions]
        torch.testing.assert_close(result, expected)


def test_no_edits_have_no_result(ids):
    lm = build("Llama")
    hidden, _ = lm.capture(ids, (1,))
    none = torch.zeros(0, dtype=torch.int64)
    result = EditRunner(lm, ids, hidden).run(1, 2, Edits(none, none, torch.zeros(0, 32)))
    assert result.shape == (0, 32) and result.dtype == torch.float32


@pytest.mark.parametrize("target", [0, 1, 4])
def test_the_target_is_a_later_layer(ids, target):
    lm = build("Llama")
    hidden, _ = lm.capture(ids, (1,))
    with pytest.raises(ValueError, match=f"from layer 1 to layer {target}"):
        EditRunner(lm, ids, hidden).run(1, target, edits_of(lm, ids, hidden[1]))


@pytest.mark.parametrize("error", ["all tokens up to the edit", "wider window", "later tokens"])
def test_a_model_on_which_one_sequence_is_wrong_runs_copies(ids, error, monkeypatch, caplog):
    """Each mask is wrong for some edits only."""
    right = clean_keys.attention_mask

    def wrong(positions, length, window, dtype):
        if error == "wider window":
            return right(positions, length, window + 1, dtype)
        mask = right(positions, length, window, dtype)
        if error == "later tokens":
            mask[..., : length - 1] = 0
        else:
            mask.scatter_(3, positions[:, None, :, None].clamp(max=length - 1), 0)
        return mask

    lm = build("Gemma3Text")
    monkeypatch.setattr(clean_keys, "attention_mask", wrong)
    hidden, _ = lm.capture(ids, (0, 1, 2))
    runner, edits = EditRunner(lm, ids, hidden), edits_of(lm, ids, hidden[1])
    with caplog.at_level(logging.WARNING):
        for source in (0, 1):
            torch.testing.assert_close(
                runner.run(source, 3, edits), plain(lm, ids, source, 3, edits)
            )
    assert lm.joins_edits == {(4, True): False}
    assert [record.getMessage() for record in caplog.records] == [
        "Gemma3Text: each edit runs as a copy of its text, which is slower: as one sequence, its "
        "edits have other effects"
    ]


def test_a_model_is_tested_once_for_texts_of_similar_length(ids, monkeypatch):
    lm, tested = build("Gemma2"), []
    test = module.reason_against_joining

    def counted(lm, ids):
        tested.append(ids.shape[1])
        return test(lm, ids)

    monkeypatch.setattr(module, "reason_against_joining", counted)
    for length in (1, 2, 3, 4, 5, 6, 7, 8, 12):
        hidden, _ = lm.capture(ids[:, :length], (1,))
        every = torch.arange(length)
        edits = Edits(every * 0, every, -hidden[1][0])
        runner = EditRunner(lm, ids[:, :length], hidden)
        torch.testing.assert_close(runner.run(1, 2, edits), runner.run_copies(1, 2, edits))
    assert tested == [1, 2, 4, 5, 8]
    assert all(lm.joins_edits.values())


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2"])
def test_mixed_precision_and_half_precision(ids, architecture):
    for dtype, is_mixed in ((torch.float32, True), (torch.bfloat16, False)):
        lm = build(architecture).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed), torch.inference_mode():
            hidden, _ = lm.capture(ids, (1,))
            edits = edits_of(lm, ids, hidden[1].float())
            runner = EditRunner(lm, ids, hidden)
            result = runner.run(1, 3, edits)
            expected = runner.run_copies(1, 3, edits)
        assert result.dtype == dtype and all(lm.joins_edits.values())
        assert (result - expected).norm() <= 0.02 * expected.norm()


def test_the_model_is_whole_again_even_after_an_error(lm, ids, monkeypatch):
    before = lm.model(input_ids=ids).logits
    hidden, _ = lm.capture(ids, (1,))
    runner, edits = EditRunner(lm, ids, hidden), edits_of(lm, ids, hidden[1])
    runner.run(1, 2, edits)
    torch.testing.assert_close(lm.model(input_ids=ids).logits, before)
    with monkeypatch.context() as patch:
        patch.setattr(lm.blocks[2], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run(1, 2, edits)
    torch.testing.assert_close(lm.model(input_ids=ids).logits, before)


def test_a_model_that_is_spread_over_devices_runs_copies(ids):
    lm = build("Llama")
    lm.model.hf_device_map = {"": 0}
    assert "device map" in module.reason_against_joining(lm, ids)


def test_blocks_that_need_the_earlier_ones_run_copies(ids):
    lm = build("Llama").double()
    lm.runs_earlier_blocks = True
    hidden, _ = lm.capture(ids, (1,))
    runner, edits = EditRunner(lm, ids, hidden), edits_of(lm, ids, hidden[1])
    torch.testing.assert_close(runner.run(1, 2, edits), plain(lm, ids, 1, 2, edits), **EXACT)
    assert not any(lm.joins_edits.values())

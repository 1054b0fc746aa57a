"""Edits have the effects that a plain forward with hooks has, in every architecture."""

import pytest
import torch

from architectures import ARCHITECTURES, build
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
    torch.testing.assert_close(runner.run(source, target, edits), expected, **EXACT)
    torch.testing.assert_close(runner.run_copies(source, target, edits), expected, **EXACT)
    assert (lm.name in JOINED) == all(lm.joins_edits.values())
    if lm.name in JOINED:
        torch.testing.assert_close(runner.run_joined(source, target, edits), expected, **EXACT)

"""Jacobians of single tokens are those of the whole model."""

import pytest
import torch

from interventions import lively, plain_jacobian
from saematch.core.errors import InputError
from saematch.lm import jacobian
from saematch.lm.edits import EditRunner
from saematch.lm.jacobian import jacobian_sums

N_TOKENS, LENGTH = 7, 9
CASES = [("Llama", 0, 2), ("GPT2", 1, 2), ("Gemma2", 0, 3), ("Rwkv", 0, 1)]
"""Gemma 2 has sliding windows that are shorter than the texts; RWKV has no attention."""


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def case(request):
    architecture, source, target = request.param
    lm = lively(architecture).double()
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(2, lm.n_embeddings, (3, LENGTH), generator=g)
    chosen = torch.randperm(3 * (LENGTH - 2), generator=g)[:N_TOKENS]
    texts, positions = chosen // (LENGTH - 2), chosen % (LENGTH - 2) + 2
    expected = torch.stack(
        [
            plain_jacobian(lm, ids, source, target, *token)
            for token in zip(texts.tolist(), positions.tolist(), strict=True)
        ]
    )
    return lm, ids, source, target, texts, positions, expected


@pytest.mark.parametrize("rows", [1, 3, 20, jacobian.ROWS])
def test_sums_of_jacobians_are_those_of_the_whole_model(case, monkeypatch, rows):
    """``rows`` 1 and 3 split the tokens, 20 and more make copies of each token."""
    monkeypatch.setattr(jacobian, "ROWS", rows)
    lm, ids, source, target, texts, positions, expected = case
    runner = EditRunner(lm, ids, lm.states(ids, (source,)))
    sums = jacobian_sums(runner, source, target, texts, positions)
    torch.testing.assert_close(sums.J, expected.sum(dim=0), rtol=1e-4, atol=1e-5)
    assert sums.squares == pytest.approx(float(expected.square().sum()), rel=1e-5)
    assert not torch.allclose(expected[0], expected[1], rtol=0.1), "tokens differ"


def test_jacobians_are_limits_of_edits(case):
    """Central differences of the edits that evaluations run have the same limit."""
    lm, ids, source, target, texts, positions, expected = case
    hidden = lm.states(ids, (source,))
    runner = EditRunner(lm, ids, hidden)
    g = torch.Generator().manual_seed(1)
    v = torch.randn(N_TOKENS, lm.d_model, generator=g).double()
    step = 3e-3  # norms of these models are computed in float32
    states = hidden[source][texts, positions]
    ends = [
        runner.run(source, target, jacobian.Edits(texts, positions, states + sign * step * v))
        for sign in (1, -1)
    ]
    changes = (ends[0] - ends[1]) / (2 * step)
    derivatives = torch.einsum("nkm,nm->nk", expected, v)
    assert (changes - derivatives).norm() < 0.01 * (derivatives - v).norm()


def test_no_tokens_have_a_sum_of_zero():
    lm = lively("Llama")
    ids = torch.randint(2, lm.n_embeddings, (2, 5))
    runner = EditRunner(lm, ids, lm.states(ids, (0,)))
    none = torch.zeros(0, dtype=torch.int64)
    sums = jacobian_sums(runner, 0, 1, none, none)
    assert not sums.J.any()
    assert sums.squares == 0


def test_a_model_without_derivatives_is_refused(monkeypatch):
    lm = lively("Llama")
    ids = torch.randint(2, lm.n_embeddings, (2, 5))
    runner = EditRunner(lm, ids, lm.states(ids, (0,)))
    monkeypatch.setattr(EditRunner, "differentiable", torch.no_grad()(EditRunner.differentiable))
    number = torch.ones(1, dtype=torch.int64)
    with pytest.raises(InputError, match="Llama: its blocks cannot be differentiated"):
        jacobian_sums(runner, 0, 1, number, number)

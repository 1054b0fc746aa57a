import math

import pytest
import torch

from saematch.evals.stats import co_activation, explained_variance


def sums(x):
    x = x.double()
    return x.sum(dim=0), x.square().sum()


def variance_explained(x, x_hat):
    return explained_variance(*sums(x_hat - x), *sums(x), len(x))


def test_explained_variance_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # variances 1 and 4
    x_hat = torch.tensor([[0.0, 0.0], [2.0, 2.0]])  # errors 0 and (0, -2): variance 1
    assert variance_explained(x, x_hat) == pytest.approx(1 - 1 / 5)


def test_explained_variance_of_perfect_mean_and_shifted():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert variance_explained(x, x) == 1.0
    assert variance_explained(x, x.mean(dim=0).expand_as(x)) == pytest.approx(0.0, abs=1e-6)
    assert variance_explained(x, x + 5.0) == pytest.approx(1.0), "a constant error has no variance"
    assert variance_explained(x, -x) == pytest.approx(-3.0)


def test_explained_variance_equals_torch_with_a_large_mean():
    g = torch.Generator().manual_seed(1)
    x = 300 + torch.randn(500, 4, generator=g)
    x_hat = x + 0.3 * torch.randn(500, 4, generator=g)
    x, x_hat = x.double(), x_hat.double()
    ratio = (x_hat - x).var(dim=0, correction=0).sum() / x.var(dim=0, correction=0).sum()
    assert variance_explained(x, x_hat) == pytest.approx(1 - ratio.item(), rel=1e-9)


def test_co_activation_by_hand():
    # feature 0: 4 tokens, partner on 2, together 1; feature 1: 1 token, partner 3, together 1;
    # feature 2 never fires
    score = co_activation(torch.tensor([1, 1, 0]), torch.tensor([4, 1, 0]), torch.tensor([2, 3, 9]))
    assert score.matching_score == pytest.approx(2 / 5)
    assert score.matching_score_macro == pytest.approx((1 / 4 + 1) / 2)
    assert score.jaccard == pytest.approx((1 / 5 + 1 / 3) / 2)
    assert (score.n_live, score.n_dead) == (2, 1)


def test_co_activation_of_dead_layers_is_no_nan():
    score = co_activation(torch.zeros(3).long(), torch.zeros(3).long(), torch.zeros(3).long())
    assert not math.isnan(score.matching_score)
    assert (score.n_live, score.n_dead) == (0, 3)

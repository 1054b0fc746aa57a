import math

import pytest
import torch

from saematch.evaluate import co_activation as module
from saematch.evaluate.co_activation import co_activation
from saematch.evaluate.counts import PairCounts
from saematch.evaluate.metrics import explained_variance, mean

ONCE = torch.ones(1, 1, dtype=torch.float64)


def sums(x, text):
    """Sums by text of vectors, and of their squared norms."""
    of_text = (torch.arange(int(text.max()) + 1)[:, None] == text).double()
    squares = x.double().square().sum(dim=1)
    return of_text @ x.double(), of_text @ squares, of_text.sum(dim=1).long()


def variance_explained(x, x_hat, text=None, weights=None):
    text = torch.zeros(len(x), dtype=torch.int64) if text is None else text
    (error, error_square, n), (x_sum, x_square, _) = sums(x_hat - x, text), sums(x, text)
    weights = torch.ones(1, len(n), dtype=torch.float64) if weights is None else weights
    return explained_variance(weights, error, error_square, x_sum, x_square, n)


def test_explained_variance_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # variances 1 and 4
    x_hat = torch.tensor([[0.0, 0.0], [2.0, 2.0]])  # errors 0 and (0, -2): variance 1
    assert variance_explained(x, x_hat).tolist() == pytest.approx([1 - 1 / 5])


def test_explained_variance_of_perfect_mean_and_shifted():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert variance_explained(x, x).item() == 1.0
    mean_of_x = x.mean(dim=0).expand_as(x)
    assert variance_explained(x, mean_of_x).item() == pytest.approx(0.0, abs=1e-6)
    shifted = variance_explained(x, x + 5.0).item()
    assert shifted == pytest.approx(1.0), "a constant error has no variance"
    assert variance_explained(x, -x).item() == pytest.approx(-3.0)


def test_explained_variance_equals_torch_with_a_large_mean_and_any_cut_into_texts():
    g = torch.Generator().manual_seed(1)
    x = 300 + torch.randn(500, 4, generator=g)
    x_hat = x + 0.3 * torch.randn(500, 4, generator=g)
    text = torch.randint(7, (500,), generator=g).sort().values
    x, x_hat = x.double(), x_hat.double()
    ratio = (x_hat - x).var(dim=0, correction=0).sum() / x.var(dim=0, correction=0).sum()
    assert variance_explained(x, x_hat, text).item() == pytest.approx(1 - ratio.item(), rel=1e-9)


def test_a_replicate_is_the_metric_of_the_texts_it_holds():
    """Weight 2 is the same as the text's tokens twice, weight 0 as the text left out."""
    g = torch.Generator().manual_seed(2)
    x, x_hat = torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g)
    text = torch.arange(30) // 10
    weights = torch.tensor([[1.0, 1, 1], [2, 0, 1]], dtype=torch.float64)
    values = variance_explained(x, x_hat, text, weights)
    drawn = torch.cat([torch.arange(10), torch.arange(10), torch.arange(20, 30)])
    expected = variance_explained(x[drawn], x_hat[drawn])
    assert values.tolist() == pytest.approx(
        [variance_explained(x, x_hat).item(), expected.item()], rel=1e-9
    )
    n = torch.tensor([1, 2, 3])
    assert mean(weights, torch.tensor([1.0, 6.0, 9.0]).double(), n).tolist() == [16 / 6, 11 / 5]


def test_co_activation_of_a_replicate_counts_its_texts_alone(monkeypatch):
    monkeypatch.setattr(module, "FEATURES_AT_ONCE", 3)  # a width that does not divide
    g = torch.Generator().manual_seed(5)
    fired = torch.randint(0, 3, (4, 8), generator=g)
    partner = fired + torch.randint(0, 2, (4, 8), generator=g)
    both = (fired * torch.rand(4, 8, generator=g)).long()
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 3, 0, 1]], dtype=torch.float64)
    one_each = torch.ones(8, dtype=torch.int64)
    counts = PairCounts(both, fired, partner, both.sum(dim=1))
    scores = co_activation(weights, counts, one_each)
    drawn = PairCounts(*(of_texts[torch.tensor([1, 1, 1, 3])] for of_texts in counts))
    once = co_activation(torch.ones(1, 4, dtype=torch.float64), drawn, one_each)
    for name in ("matching_score", "matching_score_macro", "jaccard"):
        assert getattr(scores, name)[1].item() == pytest.approx(getattr(once, name).item()), name


def test_co_activation_of_dead_layers_is_no_nan():
    dead = torch.zeros(1, 3, dtype=torch.int64)
    counts = PairCounts(dead, dead, dead, dead.sum(dim=1))
    scores = co_activation(ONCE, counts, torch.ones(3).long())
    assert not math.isnan(scores.matching_score.item() + scores.jaccard.item())
    assert (scores.n_live, scores.n_dead) == (0, 3)

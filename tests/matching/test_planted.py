import torch

from saematch.matching.planted import planted


def test_features_carry_on_at_the_cosine_that_was_asked():
    truth = planted(400, 2000, persist=0.6, cosine=(0.5, 0.9), spread=0.3, seed=1)
    x, y = (torch.nn.functional.normalize(side) for side in (truth.factors.X_A, truth.factors.X_B))
    shared = truth.columns >= 0
    assert abs(shared.float().mean() - 0.6) < 0.08
    cosine = (x[shared] * y[truth.columns[shared]]).sum(1)
    assert (cosine > 0.4).all()
    assert (cosine < 0.95).all()
    new = torch.ones(400, dtype=torch.bool).scatter(0, truth.columns[shared], False)
    assert (x @ y[new].T).abs().max() < 0.2
    assert abs(truth.factors.X_A.norm(dim=1).log().std() - 0.3) < 0.05


def test_seeded():
    first, same, other = planted(20, 5, seed=1), planted(20, 5, seed=1), planted(20, 5, seed=2)
    assert torch.equal(first.factors.X_B, same.factors.X_B)
    assert torch.equal(first.columns, same.columns)
    assert not torch.equal(first.factors.X_B, other.factors.X_B)

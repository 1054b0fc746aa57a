"""Matches for tests, and their dense matrices: the oracle for code that uses a match."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from saematch.core.match import Match
from saematch.matching.transport import transport
from saematch.sae.activations import SparseFeatures

untimed = settings(deadline=None)
"""The first example of a property imports what it needs."""


def permutation(seed, n=24):
    return Match.from_columns(torch.randperm(n, generator=torch.Generator().manual_seed(seed)), n)


def halves(n=24):
    """Feature i is, to one half each, features i and i + 1; the last is half of itself."""
    return of_dense(0.5 * (torch.eye(n) + torch.diag(torch.ones(n - 1), 1)))


def soft(seed, n=24, m=24, k=3, gone=()):
    """Each feature has k random partners of random weights that add up to 1, but for ``gone``."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, m, generator=g)
    least = scores.topk(k, dim=1).values[:, -1:]
    weights = torch.where(scores >= least, scores, 0)
    weights[list(gone)] = 0
    return of_dense(weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9))


def of_dense(weights):
    rows, columns = torch.nonzero(weights, as_tuple=True)
    return Match(rows, columns, weights[rows, columns].double(), *weights.shape)


def dense(match):
    weights = torch.zeros(match.n_source, match.n_target, dtype=torch.float64)
    weights[match.rows, match.columns] = match.weights.double()
    return weights


def partners(match):
    """Return each feature's only partner; -1 if it has none."""
    assert match.one_partner
    partner_of = torch.full((match.n_source,), -1)
    partner_of[match.rows] = match.columns
    return partner_of


def transported(match, features, source_scale=None, target_scale=None):
    """Return dense activations ``[n_tokens, n_source]`` carried through a match, dense again."""
    tokens, active = torch.nonzero(features, as_tuple=True)
    counts = torch.bincount(tokens, minlength=len(features))
    values = features[tokens, active]
    sparse = SparseFeatures(counts.cumsum(0) - counts, active, values, match.n_source)
    factor = torch.ones(match.n_source) if source_scale is None else source_scale
    other = torch.ones(match.n_target) if target_scale is None else target_scale
    moved = transport(sparse, match, factor, other)
    assert (moved.n_features, moved.n_tokens) == (match.n_target, len(features))
    out = torch.zeros(len(features), match.n_target)
    return out.index_put((moved.tokens(), moved.features), moved.values, accumulate=True)


@st.composite
def matches(draw, n=None, m=None):
    """Any weighted match: rows and columns with no, one or several entries of either sign."""
    n, m = (draw(st.integers(1, 7)) if size is None else size for size in (n, m))
    weight = st.one_of(st.just(0.0), st.floats(-2, 2, width=16))
    rows = draw(st.lists(st.lists(weight, min_size=m, max_size=m), min_size=n, max_size=n))
    return of_dense(torch.tensor(rows).reshape(n, m))


@st.composite
def permutations(draw, n=None):
    n = draw(st.integers(1, 7)) if n is None else n
    return Match.from_columns(torch.tensor(draw(st.permutations(range(n)))), n)

"""Links of features: the order of their partners, and matches at the edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from saematch.core.match import Match
from saematch.evaluate.effects import NONE, ranked_partners
from saematch.explorer.links import partners, sources


def match_of(weights):
    """Return the match whose entries are the numbers that are not 0."""
    weights = torch.as_tensor(weights, dtype=torch.float64)
    rows, columns = torch.nonzero(weights, as_tuple=True)
    values = weights[rows, columns]
    return Match(rows, columns, values, *weights.shape, scores=values / 10)


def lists(links):
    return [links.others[start:stop].tolist() for start, stop in pairwise(links.starts)]


def test_by_hand():
    match = match_of([[0.5, -2, 0, 0.5], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert lists(partners(match)) == [[1, 0, 3], [], [1]]
    assert lists(partners(match, 2)) == [[1, 0], [], [1]]
    assert lists(sources(match)) == [[0], [0, 2], [], [0]]
    assert partners(match).weights.tolist() == [-2, 0.5, 0.5, 1]
    assert partners(match).scores.tolist() == [-0.2, 0.05, 0.05, 0.1]
    assert partners(match).best.tolist() == [1, NONE, 1]
    assert sources(match).best.tolist() == [0, 0, NONE, 0]


@pytest.mark.parametrize("seed", range(5))
def test_order_is_that_of_ranked_partners(seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-3, 4, (9, 13)) * (rng.random((9, 13)) < 0.4)
    match = match_of(weights)
    for links, ranked in [
        (partners(match, 99), ranked_partners(match)),
        (sources(match, 99), ranked_partners(match.inverse())),
    ]:
        assert lists(links) == [[f for f in row.tolist() if f != NONE] for row in ranked]


def test_a_match_without_entries():
    links = partners(match_of(np.zeros((3, 2))))
    assert lists(links) == [[], [], []]
    assert links.best.tolist() == [NONE] * 3

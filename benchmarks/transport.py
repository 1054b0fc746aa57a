"""Measure the row ``sinkhorn`` of ``bench.py``."""

from __future__ import annotations

import torch
from measures import Size
from measuring import Measured, in_turn, product
from torch.nn.functional import normalize

from saematch.matching.matchers.nearest import in_blocks
from saematch.matching.matchers.sinkhorn import DenseKernel
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.products import Products

EPSILON = 0.05


def sinkhorn(size: Size) -> Measured:
    """Measure one iteration on random unit vectors, in blocks, against one product."""
    shape = size.n_features, size.d_model
    x, y = (normalize(torch.randn(shape), dim=1) for _ in range(2))
    kernel = DenseKernel(Products(x, y, in_blocks(Factors(x, y))), EPSILON, 0.0)
    v = torch.zeros(size.n_features, dtype=torch.float64)
    return in_turn(lambda: kernel.sweep(v, lambda sums: -sums), lambda: product(x, y), size.repeats)

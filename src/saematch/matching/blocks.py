"""Similarities of all pairs of features, computed in blocks, and the largest ones of each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.products import MOST_ROWS_AT_ONCE, Plan, Products, Regime

N_CANDIDATES = 256


class Largest(NamedTuple):
    """The largest similarities of each row, in no particular order."""

    values: Float32[Tensor, "n k"]
    columns: Int64[Tensor, "n k"]


def in_blocks(factors: Factors) -> Plan:
    """Return the plan of products in blocks."""
    n, m = len(factors.X_A), len(factors.X_B)
    return Plan(Regime.BLOCKS, min(m, N_CANDIDATES), min(n, MOST_ROWS_AT_ONCE))


def largest_of_rows(factors: Factors, k: int, title: str) -> Largest:
    """Return the ``k`` largest similarities of each source feature, in one blocked product.

    ``title`` names the progress bar. ``k`` is at most the number of target features.
    """
    products = Products(factors.X_A, factors.X_B, in_blocks(factors))
    largest = Largest(torch.empty(products.n, k), torch.empty(products.n, k, dtype=torch.int64))
    for block, similarity in products.blocks(title):
        best = similarity.topk(k, dim=1, sorted=False)
        largest.values[block], largest.columns[block] = best
    return largest

"""The stages of an auction: epsilon falls until the tolerance is met (docs/solver_method.md)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from saematch.core.progress import progress_inside
from saematch.matching.solver.auction import FREE, Auction
from saematch.matching.solver.candidates import Candidates
from saematch.matching.solver.products import Products

FIRST_EPSILON = 0.002
"""First epsilon, as a share of the rows' mean advantage (``_advantages``)."""
LAST_EPSILON = 1e-8
"""Smallest epsilon for any tolerance, as a share of the typical row's advantage."""
EPSILON_FACTOR = 5.0
SAMPLED_ROWS = 512
"""Number of rows from which the first prices are estimated."""
SAMPLED_COLUMNS = 256
"""Approximate number of columns from which a row's median column is estimated."""


def run_stages(
    products: Products, length: int, outside: float, tolerance: float, deadline: float
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " m"], bool, int]:
    """Run the stages of the auction.

    Return match and prices of the last completed stage, whether all stages were completed, and
    the number of rows that were scanned again.
    """
    n, m = products.n, products.m
    every_column_taken = n == m and outside == -math.inf
    sample = _sample(products)
    prices = _first_prices(sample) if every_column_taken else np.zeros(m)
    advantage, typical = _advantages(sample, prices)
    del sample
    auction = Auction(Candidates(products, length, prices), prices, outside)
    longest = float(products.x_lengths.max() * products.y_lengths.max())
    rounding = 16 * np.finfo(np.float64).eps * longest  # a smaller rise might not change a price
    smallest = max(LAST_EPSILON * typical, rounding)
    epsilon = max(FIRST_EPSILON * advantage, smallest)
    result = None
    with progress_inside("auction", None) as bar:
        while True:
            in_time = auction.stage(epsilon, deadline)
            if in_time and not every_column_taken:
                in_time = _no_column_stranded(auction, epsilon, deadline)
            if not in_time:
                result = result or (_completed(auction, products), auction.prices)
                return *result, False, auction.n_scanned_again
            result = auction.columns(), auction.prices.copy()
            to_win = _to_win(auction, products)
            target = max(tolerance * min(to_win, typical), smallest)
            n_left = max(0, math.ceil(math.log(epsilon / target, EPSILON_FACTOR)))
            bar.total = bar.done + 1 + n_left
            bar.advance()
            if epsilon <= target:
                return *result, True, auction.n_scanned_again
            epsilon = max(epsilon / EPSILON_FACTOR, target)
            if not every_column_taken:
                auction.lower_prices(2 * EPSILON_FACTOR * epsilon)


def _sample(products: Products) -> Float32[Tensor, "k m"]:
    """Return the similarities of rows at even distances."""
    k = min(products.n, SAMPLED_ROWS, max(64, products.rows_at_once))
    rows = np.linspace(0, products.n - 1, k).astype(np.int64)
    return products.of_rows(rows)


def _first_prices(sample: Float32[Tensor, "k m"]) -> Float64[np.ndarray, " m"]:
    """Return first prices: a column's mean similarity plus one standard deviation over some rows.

    Rows are scaled to one length; otherwise a few long ones would overprice columns for all.
    """
    sizes = sample.norm(dim=1, keepdim=True)
    scaled = sample * torch.where(sizes > 0, sizes.median() / sizes, 0.0)
    return (scaled.mean(0) + scaled.std(0, correction=0)).double().cpu().numpy()


def _advantages(
    sample: Float32[Tensor, "k m"], prices: Float64[np.ndarray, " m"]
) -> tuple[float, float]:
    """Return the advantage of a row's best column over another column: mean and typical row.

    The mean over rows compares with the mean column, and the median over rows with the median
    column. A few huge rows and columns do not change the median. Epsilons are given in units of the
    advantages, since these scale with the similarities and do not change with a shift. Both are at
    least the rounding of the products, and 1 if all similarities are 0.
    """
    net = sample - torch.from_numpy(prices).float().to(sample.device)
    columns = net[:, :: max(1, net.shape[1] // SAMPLED_COLUMNS)]
    best = net.amax(1)
    least = torch.finfo(torch.float32).eps * float(sample.abs().max()) or 1.0
    mean, typical = best.mean() - net.mean(), (best - columns.median(1).values).median()
    return max(float(mean), least), max(float(typical), least)


def _to_win(auction: Auction, products: Products) -> float:
    """Return the mean value of a row over chance.

    If rows may stay unmatched there is no chance value, and the mean similarity is returned.
    """
    if auction.outside > -math.inf:
        return abs(auction.value) / products.n
    return max(0.0, auction.value - products.chance.value) / products.n


def _no_column_stranded(auction: Auction, epsilon: float, deadline: float) -> bool:
    """Repeat a stage from lower prices until the prices of free columns are (nearly) 0.

    This is a condition of optimality if columns may stay free, and a price that remains from an
    earlier stage would violate it. The loop ends: from prices of 0 only columns with a row rise.
    Return False if the deadline passed.
    """
    by = 4 * EPSILON_FACTOR * epsilon
    while auction.stranded > 0.5 * epsilon * len(auction.partner):
        auction.lower_prices(by)
        by *= 4
        if not auction.stage(epsilon, deadline):
            return False
    return True


def _completed(auction: Auction, products: Products) -> Int64[np.ndarray, " n"]:
    """Return the columns after each unassigned row got the best free column."""
    columns, free = auction.columns(), torch.from_numpy(auction.holder == FREE)
    rows = np.flatnonzero(auction.partner == FREE)
    for start in range(0, len(rows), products.rows_at_once):
        block = rows[start : start + products.rows_at_once]
        for row, similarity in zip(block, products.of_rows(block).cpu(), strict=True):
            worth, column = torch.where(free, similarity, -torch.inf).max(0)
            if worth > auction.outside:
                columns[row], free[column] = column, False
    return columns

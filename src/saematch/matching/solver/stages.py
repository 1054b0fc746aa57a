"""The stages of an auction: epsilon goes down until the tolerance is met (docs/solver.md)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from tqdm import tqdm

from saematch.matching.solver.auction import FREE, Auction
from saematch.matching.solver.candidates import Candidates
from saematch.matching.solver.products import Products

FIRST_EPSILON = 0.002
"""Of the mean advantage of rows: what the best column is worth more than the mean column."""
LAST_EPSILON = 1e-8
"""Of the typical advantage of rows; the auction goes no lower, whatever the tolerance."""
EPSILON_FACTOR = 5.0
SAMPLED_ROWS = 512
"""Rows from which the first prices are estimated."""
SAMPLED_COLUMNS = 256
"""Columns, about, from which the median column of a row is estimated."""


def run_stages(
    products: Products, length: int, outside: float, tolerance: float, deadline: float
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " m"], bool, int]:
    """Run the stages of the auction.

    Returns match and prices of the last stage that was finished, whether that was the last of all,
    and how many rows were scanned again.
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
    found = None
    bar = tqdm(desc="auction", unit="stage", leave=False, delay=1, disable=not products.progress)
    with bar:
        while True:
            in_time = auction.stage(epsilon, deadline)
            if in_time and not every_column_taken:
                in_time = _no_column_stranded(auction, epsilon, deadline)
            if not in_time:
                found = found or (_completed(auction, products), auction.prices)
                return *found, False, auction.n_scanned_again
            found = auction.columns(), auction.prices.copy()
            to_win = _to_win(auction, products)
            target = max(tolerance * min(to_win, typical), smallest)
            bar.total = bar.n + 1 + max(0, math.ceil(math.log(epsilon / target, EPSILON_FACTOR)))
            bar.set_postfix(gap=f"~{epsilon / (to_win or 1.0):.0e}", refresh=False)
            bar.update()
            if epsilon <= target:
                return *found, True, auction.n_scanned_again
            epsilon = max(epsilon / EPSILON_FACTOR, target)
            if not every_column_taken:
                auction.lower_prices(2 * EPSILON_FACTOR * epsilon)


def _sample(products: Products) -> Float32[Tensor, "k m"]:
    """Return the similarities of rows taken at even distances."""
    k = min(products.n, SAMPLED_ROWS, max(64, products.rows_at_once))
    rows = np.linspace(0, products.n - 1, k).astype(np.int64)
    return products.of(rows)


def _first_prices(sample: Float32[Tensor, "k m"]) -> Float64[np.ndarray, " m"]:
    """Estimate what a column is worth to many: mean and one standard deviation over some rows.

    Each row counts alike, whatever its length: a few long ones would overprice columns for all.
    """
    sizes = sample.norm(dim=1, keepdim=True)
    alike = sample * torch.where(sizes > 0, sizes.median() / sizes, 0.0)
    return (alike.mean(0) + alike.std(0, correction=0)).double().cpu().numpy()


def _advantages(
    sample: Float32[Tensor, "k m"], prices: Float64[np.ndarray, " m"]
) -> tuple[float, float]:
    """Return what the best column of a row is worth more than another: mean and typical row.

    For the mean over rows the other column is the mean column, for the median over rows the median
    column: a few huge rows and columns leave the median as it is. Scale and shift of the
    similarities leave both as they are, so epsilons are measured by them. Both are at least the
    rounding of the products, and 1 where all is 0 and nothing matters.
    """
    net = sample - torch.from_numpy(prices).float().to(sample.device)
    some = net[:, :: max(1, net.shape[1] // SAMPLED_COLUMNS)]
    best = net.amax(1)
    least = torch.finfo(torch.float32).eps * float(sample.abs().max()) or 1.0
    mean, typical = best.mean() - net.mean(), (best - some.median(1).values).median()
    return max(float(mean), least), max(float(typical), least)


def _to_win(auction: Auction, products: Products) -> float:
    """Return what a row wins over chance, on average.

    Rows that may stay out have no chance value: for them it is the mean similarity.
    """
    if auction.outside > -math.inf:
        return abs(auction.value) / products.n
    return max(0.0, auction.value - products.chance.value) / products.n


def _no_column_stranded(auction: Auction, epsilon: float, deadline: float) -> bool:
    """Repeat a stage from lower prices until columns that nobody holds are priced at (nearly) 0.

    Where columns may stay free this is a condition of optimality, and a price left over from an
    source stage would break it. It ends: at prices of 0 only columns that are held rise.
    """
    by = 4 * EPSILON_FACTOR * epsilon
    while auction.stranded > 0.5 * epsilon * len(auction.partner):
        auction.lower_prices(by)
        by *= 4
        if not auction.stage(epsilon, deadline):
            return False
    return True


def _completed(auction: Auction, products: Products) -> Int64[np.ndarray, " n"]:
    """Give each row that has no column yet the best of those that nobody holds."""
    columns, free = auction.columns(), torch.from_numpy(auction.holder == FREE)
    rows = np.flatnonzero(auction.partner == FREE)
    for start in range(0, len(rows), products.rows_at_once):
        some = rows[start : start + products.rows_at_once]
        for row, of_row in zip(some, products.of(some).cpu(), strict=True):
            worth, column = torch.where(free, of_row, -torch.inf).max(0)
            if worth > auction.outside:
                columns[row], free[column] = column, False
    return columns

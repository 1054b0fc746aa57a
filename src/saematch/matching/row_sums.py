"""Float64 sums over float32 or float64 rows on the CPU, in one pass and without a copy."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numba import njit
from torch import Tensor

_FAST = {"nnan", "nsz", "reassoc", "contract"}


def fits(*sides: Tensor) -> bool:
    """Return whether the kernels take these tensors: on the CPU, contiguous, of one usual type."""
    dtype = sides[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        side.is_cpu and side.is_contiguous() and side.dtype == dtype for side in sides
    )


def lengths_and_total(
    side: Float[Tensor, "n size"],
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " size"]]:
    """Return the norm of each row, and the sum of all rows. ``fits(side)`` must hold."""
    squares, total = np.empty(len(side)), np.zeros(side.shape[1])
    squares_and_total(side.numpy(), squares, total)
    return torch.from_numpy(np.sqrt(squares)), torch.from_numpy(total)


def inner_with(
    side: Float[Tensor, "n size"], vector: Float64[Tensor, " size"]
) -> Float64[np.ndarray, " n"]:
    """Return the inner product of each row with ``vector``. ``fits(side)`` must hold."""
    out = np.empty(len(side))
    _inner_with(side.numpy(), vector.numpy(), out)
    return out


def inner_of_pairs(
    x: Float[Tensor, "n size"],
    y: Float[Tensor, "m size"],
    rows: Int64[np.ndarray, " k"],
    columns: Int64[np.ndarray, " k"],
    centre: Float64[np.ndarray, " size"] | None,
) -> Float64[np.ndarray, " k"]:
    """Return the inner products of chosen rows minus ``centre``. ``fits(x, y)`` must hold."""
    out = np.empty(len(rows))
    if centre is None:
        _inner(x.numpy(), y.numpy(), rows, columns, out)
    else:
        _centred_inner(x.numpy(), y.numpy(), rows, columns, centre, out)
    return out


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def squares_and_total(x, squares, total):
    """Read four rows together, so that the total is loaded and stored once for all four."""
    n, size = x.shape
    for i in range(0, n - 3, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        of_a = of_b = of_c = of_d = 0.0
        for k in range(size):
            p, q, r, s = np.float64(a[k]), np.float64(b[k]), np.float64(c[k]), np.float64(d[k])
            of_a += p * p
            of_b += q * q
            of_c += r * r
            of_d += s * s
            total[k] += (p + q) + (r + s)
        squares[i], squares[i + 1], squares[i + 2], squares[i + 3] = of_a, of_b, of_c, of_d
    for i in range(n - n % 4, n):
        square = 0.0
        for k in range(size):
            p = np.float64(x[i, k])
            square += p * p
            total[k] += p
        squares[i] = square


@njit(cache=True, nogil=True)
@no_type_check
def _inner_with(x, vector, out):
    for i in range(len(x)):
        out[i] = inner_product(x[i], vector)


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def inner_product(a, b):
    """Return the inner product of two vectors."""
    product = 0.0
    for k in range(len(a)):
        product += np.float64(a[k]) * np.float64(b[k])
    return product


@njit(cache=True, nogil=True)
@no_type_check
def _inner(x, y, rows, columns, out):
    for pair in range(len(rows)):
        out[pair] = inner_product(x[rows[pair]], y[columns[pair]])


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _centred_inner(x, y, rows, columns, centre, out):
    for pair in range(len(rows)):
        a, b = x[rows[pair]], y[columns[pair]]
        product = 0.0
        for k in range(x.shape[1]):
            product += (np.float64(a[k]) - centre[k]) * (np.float64(b[k]) - centre[k])
        out[pair] = product

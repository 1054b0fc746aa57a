"""Similarities ``S = X_A X_Bᵀ``.

Products are float32, in blocks, and stored whole if they fit. Chosen pairs are float64.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.progress import progress_inside
from saematch.matching import row_sums
from saematch.matching.centring import VECTORS_AT_ONCE, Chance, Moments

CPU = torch.device("cpu")
GIB = 2**30
LONGEST_LIST = 2048
"""Largest number of candidates a row; choosing more takes longer than the scans they save."""
SHORTEST_LIST = 16
MOST_ROWS_AT_ONCE = 1024
"""Largest number of rows in a product; more rows make it no faster."""
BYTES_A_SIMILARITY = 12
"""Memory of a block, per row and column: product, net value, and one copy."""
NUMBERS_AT_ONCE = 1 << 21
"""Similarities that the CPU processes together; they fit into its caches."""
SHARE_OF_FREE_MEMORY = 0.5
SMALL = 1 << 20
"""Number of similarities (4 MiB) that fit into any machine's memory and nearly into its caches."""


class Regime(Enum):
    """How the similarities are stored."""

    WHOLE = "whole"
    """All similarities, in memory."""
    BLOCKS = "blocks"
    """The largest similarities of each row. Rows that need more are computed again, in blocks."""
    DEVICE = "device"
    """Like ``blocks``, but another device computes products and chooses the best."""


@dataclass(frozen=True)
class Plan:
    """Sizes that fit into the available memory."""

    regime: Regime
    length: int
    """Number of candidates of each row; all columns if the similarities are stored whole."""
    rows_at_once: int
    """Number of rows in a block of a product."""
    device: torch.device = CPU
    """Device that computes products."""


def plan(
    n: int, m: int, memory_gib: float | None, device: torch.device, regime: Regime | None
) -> Plan:
    """Return the plan for ``n`` rows and ``m`` columns; choose a regime if none is given.

    ``memory_gib`` is the memory for everything except the input, by default half of the free
    memory. Raises ``InputError`` if it is too little for ``SHORTEST_LIST`` candidates a row.
    """
    if memory_gib is None and device == CPU and n * m <= SMALL and regime in (None, Regime.WHOLE):
        return Plan(Regime.WHOLE, m, min(n, MOST_ROWS_AT_ONCE))  # reading the free memory is slow
    budget = _free_memory() * SHARE_OF_FREE_MEMORY if memory_gib is None else memory_gib * GIB
    a_row = BYTES_A_SIMILARITY * m
    for_block = budget / 4
    if device.type == "cuda":
        for_block = min(for_block, torch.cuda.mem_get_info(device)[0] / 8)
    rows_at_once = int(min(n, MOST_ROWS_AT_ONCE, max(1, for_block // a_row)))
    left = budget - rows_at_once * a_row
    if regime is None and device.type != "cpu":
        regime = Regime.DEVICE
    if regime is Regime.WHOLE or (regime is None and 4 * n * m <= left):
        return Plan(Regime.WHOLE, m, rows_at_once, device)
    shortest = min(SHORTEST_LIST, m)
    length = int(min(m, LONGEST_LIST, left // (8 * n)))
    if length < shortest:
        need = (8 * n * shortest + a_row) * 4 / 3 / GIB
        raise InputError(
            f"{budget / GIB:.3g} GiB of memory do not hold {shortest} candidates for each of {n} "
            f"rows; give memory_gib at least {need:.3g}"
        )
    return Plan(regime or Regime.BLOCKS, length, rows_at_once, device)


def _free_memory() -> int:
    """Return the free bytes of this machine or of this process's control groups, if less."""
    free = psutil.virtual_memory().available
    root, groups = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        own = root / line.partition("::")[2].lstrip("/")
        for folder in (own, *own.parents):
            limit, used, cached = (folder / f"memory.{k}" for k in ("max", "current", "stat"))
            if not limit.exists() or (most := limit.read_text().strip()) == "max":
                continue
            file_cache = re.search(r"^inactive_file (\d+)$", cached.read_text(), re.MULTILINE)
            again = int(file_cache[1]) if file_cache else 0
            free = min(free, int(most) - int(used.read_text()) + again)
    return max(free, 0)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in full float32, even if the process allows TF32 or bfloat16 elsewhere."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Products:
    """Similarities of the rows of ``x`` and ``y``: all in float32, chosen pairs in float64.

    With a ``centre`` the rows are those of ``x - centre`` and ``y - centre``.
    """

    held: Float32[Tensor, "n m"] | None = None

    def __init__(
        self,
        x: Float[Tensor, "n size"],
        y: Float[Tensor, "m size"],
        how: Plan,
        centre: Float[Tensor, " size"] | None = None,
    ) -> None:
        device = how.device
        self.n, self.m, self.size = len(x), len(y), x.shape[1]
        self.rows_at_once = how.rows_at_once
        self._x, self._y = x, y
        self.centre = None if centre is None else centre.to(device)
        if self.centre is None:
            self.x, self.y = (side.to(device, torch.float32) for side in (x, y))
        else:  # rows of x are centred when they are multiplied, which saves a copy of x
            self.x, self.y = x.to(device), torch.empty(y.shape, dtype=torch.float32, device=device)
            parts = zip(y.split(VECTORS_AT_ONCE), self.y.split(VECTORS_AT_ONCE), strict=True)
            for part, centred in parts:
                centred.copy_(part.to(device) - self.centre)
        if how.regime is Regime.WHOLE:
            self.held = self.y.new_empty(self.n, self.m)
            parts = zip(
                self.x.split(MOST_ROWS_AT_ONCE), self.held.split(MOST_ROWS_AT_ONCE), strict=True
            )
            for part, block in parts:  # each takes seconds, and a signal waits for its end
                self._product(part, out=block)

    @cached_property
    def moments(self) -> tuple[Moments, Moments]:
        """Lengths and sums of the rows of both sides, without the centre."""
        return Moments.of(self._x, self.centre), Moments.of(self._y, self.centre)

    @property
    def x_lengths(self) -> Float64[Tensor, " n"]:
        """Norm of each row."""
        return self.moments[0].lengths

    @property
    def y_lengths(self) -> Float64[Tensor, " m"]:
        """Norm of each column's vector."""
        return self.moments[1].lengths

    @cached_property
    def chance(self) -> Chance:
        """Expected similarities of a random match, without the centre."""
        sums = self.moments[0].total, self.moments[1].total
        return Chance.of(self._x, self._y, self.centre, sums)

    def _product(
        self, x: Float[Tensor, "k size"], out: Float32[Tensor, "k m"] | None = None
    ) -> Float32[Tensor, "k m"]:
        if self.centre is not None:
            x = (x - self.centre).float()
        with full_precision():
            return torch.mm(x, self.y.T, out=out)

    def of_rows(self, rows: Int64[np.ndarray, " k"]) -> Float32[Tensor, "k m"]:
        """Return the similarities of the given rows to all columns."""
        index = torch.from_numpy(rows).to(self.x.device)
        return self._product(self.x[index]) if self.held is None else self.held[index]

    def blocks(self, title: str) -> Iterator[tuple[slice, Float32[Tensor, "k m"]]]:
        """Yield blocks of rows and their similarities; ``title`` is the work's name on the bar.

        The next block overwrites the memory of the one before.
        """
        step = self.rows_at_once
        if self.x.device.type == "cpu":
            step = min(step, max(1, NUMBERS_AT_ONCE // self.m))
        buffer = self.y.new_empty(self.rows_at_once if self.held is None else 0, self.m)
        with progress_inside(title, self.n) as bar:
            for start in range(0, self.n, self.rows_at_once):
                stop = min(self.n, start + self.rows_at_once)
                if self.held is None:
                    block = self._product(self.x[start:stop], out=buffer[: stop - start])
                else:
                    block = self.held[start:stop]
                for first in range(start, stop, step):
                    last = min(stop, first + step)
                    yield slice(first, last), block[first - start : last - start]
                    bar.advance(last - first)

    def exact(
        self, rows: Int64[np.ndarray, " k"], columns: Int64[np.ndarray, " k"]
    ) -> Float64[np.ndarray, " k"]:
        """Return the similarities of chosen pairs, in float64."""
        if row_sums.fits(self._x, self._y):
            centre = None if self.centre is None else self.centre.double().numpy()
            return row_sums.inner_of_pairs(self._x, self._y, rows, columns, centre)
        out = np.empty(len(rows))
        for start in range(0, len(rows), VECTORS_AT_ONCE):
            block = slice(start, start + VECTORS_AT_ONCE)
            sides = [
                self._exact(side, torch.from_numpy(index[block]).to(side.device))
                for side, index in ((self._x, rows), (self._y, columns))
            ]
            out[block] = torch.linalg.vecdot(*sides).numpy()
        return out

    def exact_best(
        self,
        rows: Int64[np.ndarray, " k"],
        prices: Float64[np.ndarray, " m"],
        without: Int64[np.ndarray, " k"],
    ) -> Float64[np.ndarray, " k"]:
        """Return each row's best net value in float64, without one column each (-1: none)."""
        best = np.full(len(rows), -np.inf)
        x = self._exact(self._x, torch.from_numpy(rows).to(self._x.device))
        for start in range(0, self.m, VECTORS_AT_ONCE):
            block = slice(start, start + VECTORS_AT_ONCE)
            net = (x @ self._exact(self._y, block).T).numpy() - prices[block]
            excluded = np.flatnonzero((without >= start) & (without < start + net.shape[1]))
            net[excluded, without[excluded] - start] = -np.inf
            best = np.maximum(best, net.max(axis=1))
        return best

    def _exact(
        self, side: Float[Tensor, "n size"], rows: slice | Int64[Tensor, " k"]
    ) -> Float64[Tensor, "k size"]:
        """Return some vectors in float64, converted from the input."""
        vectors = side[rows].to("cpu", torch.float64)
        return vectors if self.centre is None else vectors - self.centre.to("cpu", torch.float64)

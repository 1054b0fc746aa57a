"""Similarities ``S = X_A X_Bᵀ``: float32 products in blocks, held whole where there is room, and
chosen pairs in float64."""

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
from tqdm import tqdm

from saematch.core.errors import InputError
from saematch.matching.centring import VECTORS_AT_ONCE, Chance, lengths

CPU = torch.device("cpu")
GIB = 2**30
LONGEST_LIST = 2048
"""Candidates a row keeps at most; more cost longer to choose than they save in scans."""
SHORTEST_LIST = 16
MOST_ROWS_AT_ONCE = 1024
"""Rows of a product; with more, the product is no faster."""
BYTES_A_SIMILARITY = 12
"""What a block takes on the way, a row and column: product, net value, and one copy."""
NUMBERS_AT_ONCE = 1 << 21
"""Similarities looked at in one go on the CPU, few enough for its caches."""
SHARE_OF_FREE_MEMORY = 0.5


class Regime(Enum):
    """How the similarities are held."""

    WHOLE = "whole"
    """All of them, in memory."""
    BLOCKS = "blocks"
    """Only the best of each row; all are computed again, in blocks, where these do not suffice."""
    DEVICE = "device"
    """As blocks, with the products computed and the best chosen on another device."""


@dataclass(frozen=True)
class Plan:
    """What fits into the memory at hand."""

    regime: Regime
    length: int
    """Candidates that each row keeps; all columns where the similarities are held whole."""
    rows_at_once: int
    """Rows of a block of a product."""


def plan(
    n: int, m: int, memory_gib: float | None, device: torch.device, regime: Regime | None
) -> Plan:
    """Choose a regime for ``n`` rows and ``m`` columns, if it is not given.

    ``memory_gib`` is for all that is held beside the input; by default it is half of what is free.
    ``InputError`` if it does not suffice for ``SHORTEST_LIST`` candidates a row.
    """
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
        return Plan(Regime.WHOLE, m, rows_at_once)
    shortest = min(SHORTEST_LIST, m)
    length = int(min(m, LONGEST_LIST, left // (8 * n)))
    if length < shortest:
        need = (8 * n * shortest + a_row) * 4 / 3 / GIB
        raise InputError(
            f"{budget / GIB:.3g} GiB of memory do not hold {shortest} candidates for each of {n} "
            f"rows; give memory_gib at least {need:.3g}"
        )
    return Plan(regime or Regime.BLOCKS, length, rows_at_once)


def _free_memory() -> int:
    """Bytes that are free on this machine, and in the control groups that this process is in."""
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
def _full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the process allows elsewhere (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Products:
    """All similarities of the rows of ``x`` and ``y``, in float32 or, for chosen pairs, float64.

    With a ``centre`` they are those of ``x - centre`` and ``y - centre``.
    """

    held: Float32[Tensor, "n m"] | None = None

    def __init__(
        self,
        x: Float[Tensor, "n size"],
        y: Float[Tensor, "m size"],
        how: Plan,
        device: torch.device = CPU,
        progress: bool = False,
        centre: Float[Tensor, " size"] | None = None,
    ) -> None:
        self.n, self.m, self.size = len(x), len(y), x.shape[1]
        self.progress = progress
        self.rows_at_once = how.rows_at_once
        self._x, self._y = x, y
        self.centre = None if centre is None else centre.to(device)
        self.x_lengths, self.y_lengths = lengths(x, centre), lengths(y, centre)
        if self.centre is None:
            self.x, self.y = (side.to(device, torch.float32) for side in (x, y))
        else:  # rows of x are centred when they are multiplied: a copy of all would take memory
            self.x, self.y = x.to(device), torch.empty(y.shape, dtype=torch.float32, device=device)
            parts = zip(y.split(VECTORS_AT_ONCE), self.y.split(VECTORS_AT_ONCE), strict=True)
            for part, centred in parts:
                centred.copy_(part.to(device) - self.centre)
        if how.regime is Regime.WHOLE:
            self.held = self.y.new_empty(self.n, self.m)
            parts = zip(
                self.x.split(MOST_ROWS_AT_ONCE), self.held.split(MOST_ROWS_AT_ONCE), strict=True
            )
            for part, block in parts:  # seconds each: signals wait for one
                self._product(part, out=block)

    @cached_property
    def chance(self) -> Chance:
        """What pairs are worth by chance, less the centre."""
        return Chance.of(self._x, self._y, self.centre)

    def _product(
        self, x: Float[Tensor, "k size"], out: Float32[Tensor, "k m"] | None = None
    ) -> Float32[Tensor, "k m"]:
        if self.centre is not None:
            x = (x - self.centre).float()
        with _full_precision():
            return torch.mm(x, self.y.T, out=out)

    def of(self, rows: Int64[np.ndarray, " k"]) -> Float32[Tensor, "k m"]:
        """Return the similarities of some rows."""
        index = torch.from_numpy(rows).to(self.x.device)
        return self._product(self.x[index]) if self.held is None else self.held[index]

    def blocks(self, what: str) -> Iterator[tuple[slice, Float32[Tensor, "k m"]]]:
        """Go over all rows, some at a time; ``what`` names the progress bar.

        What is yielded is overwritten by the next.
        """
        bar = tqdm(total=self.n, desc=what, unit="row", leave=False, delay=2,
                   disable=not self.progress)  # fmt: skip
        step = self.rows_at_once
        if self.x.device.type == "cpu":
            step = min(step, max(1, NUMBERS_AT_ONCE // self.m))
        buffer = self.y.new_empty(self.rows_at_once if self.held is None else 0, self.m)
        with bar:
            for start in range(0, self.n, self.rows_at_once):
                stop = min(self.n, start + self.rows_at_once)
                if self.held is None:
                    block = self._product(self.x[start:stop], out=buffer[: stop - start])
                else:
                    block = self.held[start:stop]
                for first in range(start, stop, step):
                    last = min(stop, first + step)
                    yield slice(first, last), block[first - start : last - start]
                    bar.update(last - first)

    def exact(
        self, rows: Int64[np.ndarray, " k"], columns: Int64[np.ndarray, " k"]
    ) -> Float64[np.ndarray, " k"]:
        """Return the similarities of chosen pairs, in float64."""
        out = np.empty(len(rows))
        for start in range(0, len(rows), VECTORS_AT_ONCE):
            some = slice(start, start + VECTORS_AT_ONCE)
            sides = [
                self._exact(side, torch.from_numpy(index[some]).to(side.device))
                for side, index in ((self._x, rows), (self._y, columns))
            ]
            out[some] = torch.linalg.vecdot(*sides).numpy()
        return out

    def exact_best(
        self,
        rows: Int64[np.ndarray, " k"],
        prices: Float64[np.ndarray, " m"],
        without: Int64[np.ndarray, " k"],
    ) -> Float64[np.ndarray, " k"]:
        """Return the best net value of each row in float64 over all columns but one (-1: none)."""
        best = np.full(len(rows), -np.inf)
        x = self._exact(self._x, torch.from_numpy(rows).to(self._x.device))
        for start in range(0, self.m, VECTORS_AT_ONCE):
            some = slice(start, start + VECTORS_AT_ONCE)
            net = (x @ self._exact(self._y, some).T).numpy() - prices[some]
            excluded = np.flatnonzero((without >= start) & (without < start + net.shape[1]))
            net[excluded, without[excluded] - start] = -np.inf
            best = np.maximum(best, net.max(axis=1))
        return best

    def _exact(
        self, side: Float[Tensor, "n size"], some: slice | Int64[Tensor, " k"]
    ) -> Float64[Tensor, "k size"]:
        """Return some vectors in float64, from the vectors as they came."""
        vectors = side[some].to("cpu", torch.float64)
        return vectors if self.centre is None else vectors - self.centre.to("cpu", torch.float64)

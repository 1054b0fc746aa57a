"""``solve_assignment``: the best one-to-one match of two sets of vectors, with a proof."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numba.core.event import install_listener
from torch import Tensor

from saematch.core.devices import usable_device
from saematch.core.errors import InputError
from saematch.core.match import Certificate
from saematch.matching import row_sums
from saematch.matching.centring import Moments, common_centre, has_common_part, inner
from saematch.matching.solver.certificate import Proof, Result, prove
from saematch.matching.solver.compiling import NOTICE
from saematch.matching.solver.finish import finish
from saematch.matching.solver.paths import shortest_paths
from saematch.matching.solver.products import CPU, SMALL, Products, Regime, plan
from saematch.matching.solver.small import solve_small
from saematch.matching.solver.stages import run_stages


class Status(Enum):
    """How a solve ended; the value is the message."""

    OPTIMAL = "optimal within the tolerance"
    TIME_LIMIT = "the time limit passed before the tolerance was met"
    TOO_MANY_TIES = "the tolerance was not met, since too many pairs are equally good"


@dataclass(frozen=True, repr=False)
class Solution:
    """A match, its proof, and how the solver ran."""

    columns: Int64[np.ndarray, " n_a"]
    """Partner of each row of ``x_a`` among the rows of ``x_b``; -1 for no partner."""
    certificate: Certificate
    """Value and bound; without ``unmatched`` also chance, gap over chance and ``n_90``; and the
    share of pairs that are certain."""
    certain: Bool[np.ndarray, " n_a"]
    """Whether the pair of each row of ``x_a`` is proven to be in every optimal match."""
    prices: Float64[np.ndarray, " n_b"]
    """The dual variables of ``x_b`` that prove the bound: it is at least
    ``sum_i max_j (s_ij - prices_j) + sum_j prices_j``, where the maximum is taken as at least 0 if
    there are more rows in ``x_a`` than in ``x_b``, and otherwise as at least ``unmatched``."""
    seconds: float
    regime: str
    """How similarities were stored: ``whole``, ``blocks`` or ``device``."""
    status: Status
    n_scanned_again: int
    """Rows whose candidates were chosen again; each costs a row of the product."""

    def __repr__(self) -> str:
        n_matched = int((self.columns >= 0).sum())
        return (
            f"Solution({len(self.columns)} → {len(self.prices)} rows: {n_matched} matched, value "
            f"{self.value:.6g}, gap {self.certificate.optimal_to:.1e}, {self.seconds:.2g} s; "
            f"{self.status.value})"
        )

    @property
    def value(self) -> float:
        """Total similarity of the pairs, and ``unmatched`` for each row of the smaller side without
        a partner."""
        return self.certificate.value

    @property
    def bound(self) -> float:
        """No match is worth more (weak duality; see ``prices``)."""
        assert self.certificate.bound is not None
        return self.certificate.bound

    @property
    def gap(self) -> float:
        """``(bound - value) / |bound|``."""
        assert self.certificate.gap is not None
        return self.certificate.gap

    @property
    def gap_over_chance(self) -> float | None:
        """``(bound - value) / (bound - chance)``; None with ``unmatched``."""
        return self.certificate.gap_over_chance


@dataclass(frozen=True)
class SolverResources:
    """Memory and device of a solve."""

    memory_gib: float | None = None
    """Memory to use in addition to the input; by default half of the free memory."""
    device: str | torch.device | None = None
    """Device that computes products and makes lists; by default the device of ``x_a``, or CUDA if
    it is available and ``x_a`` is on the CPU."""
    regime: str | None = None
    """How similarities are stored: ``whole`` in memory, ``blocks`` (the best of each row, on the
    CPU) or ``device`` (the same, with products on ``device``); by default what fits."""

    @property
    def usual(self) -> bool:
        """Whether a small problem may be solved whole, in memory and on the CPU."""
        return self.memory_gib is None and self.device is None and self.regime in (None, "whole")


@install_listener("numba:compile", NOTICE)
def solve_assignment(
    x_a: np.ndarray | Tensor,
    x_b: np.ndarray | Tensor,
    *,
    unmatched: float | None = None,
    tolerance: float = 1e-6,
    time_limit: float | None = None,
    resources: SolverResources | None = None,
) -> Solution:
    """Match rows of ``x_a`` and ``x_b`` one to one for the largest total inner product.

    Every row of the smaller side gets a partner. With ``unmatched``, a row may stay without one if
    that is better; staying unmatched is worth ``unmatched``.

    Small problems (up to ``SMALL`` similarities) are solved by shortest augmenting paths (Jonker
    and Volgenant 1987), others by a forward auction with epsilon-scaling (Bertsekas 1988;
    ``docs/solver_method.md``). Products are float32, prices float64. A separate pass then computes
    ``value`` and ``bound``, exact to float64 rounding. For two sides of one size and no
    ``unmatched``, a common vector is first subtracted from all rows, unless both means are short.
    This subtracts the same number from the value of every permutation. The number is added to
    value, bound and chance at the end.

    If the similarities fit into memory, the time is little more than that of one float32 product of
    both sides (``2 n_a n_b size`` flops). Otherwise it is the time of two products and of the rows
    that are scanned again. The memory, in addition to the input, is ``4 n_a n_b`` bytes, or
    ``8 K n`` bytes for lists of ``K <= 2048`` candidates if that is too much. A float32 copy of
    ``x_b`` is added if a common vector is subtracted; otherwise copies of inputs that are not
    float32.

    Args:
        x_a: ``[n_a, size]``, vectors of one side, of any floating type.
        x_b: ``[n_b, size]``, vectors of the other side.
        unmatched: value of a row without a partner; None if every row must have one.
        tolerance: gap to stop at, ``(bound - value) / (bound - chance)``, where chance is the
            expected value of a random match; with ``unmatched``, ``(bound - value) / |bound|``. 0
            asks for the optimum itself.
        time_limit: seconds after which the best match so far is returned. Making the first lists,
            the step that is running at that time, and the proof take additional time.
        resources: memory and device; by default ``SolverResources()``.

    Raises:
        ValueError: for arrays of other shapes, empty ones, values that are not finite or out of
            float32's range, settings without meaning, and too little memory.
    """
    started = time.monotonic()
    resources = resources or SolverResources()
    a, b = _sides(x_a, x_b)
    _check_limits(unmatched, tolerance, time_limit)
    outside = -math.inf if unmatched is None else float(unmatched)
    deadline = math.inf if time_limit is None else started + time_limit
    swapped = len(a) > len(b)
    sides = (b, a) if swapped else (a, b)
    result = None
    if len(a) * len(b) <= SMALL and resources.usual and row_sums.fits(a, b):
        result = solve_small(*sides, outside) if time.monotonic() <= deadline else None
    missed = result is None or _missed(result.proof, tolerance)
    if missed:
        moments = Moments.of(a), Moments.of(b)
        _check_lengths(*(float(side.lengths.max()) for side in moments))
        limits = Limits(outside, tolerance, deadline)
        result = _solve(sides, moments[::-1] if swapped else moments, limits, resources)
        missed = _missed(result.proof, tolerance)
    assert result is not None
    status = Status.OPTIMAL
    if missed:
        status = Status.TOO_MANY_TIES if result.in_time else Status.TIME_LIMIT
    columns, prices, certain = result.columns, result.prices, result.proof.certain
    if swapped:
        rows, partners = np.flatnonzero(columns >= 0), columns[columns >= 0]
        columns, certain = np.full(len(a), -1), np.zeros(len(a), bool)
        columns[partners], certain[partners] = rows, result.proof.certain[rows]
        prices = result.proof.profits
    return Solution(
        columns=columns,
        certificate=result.proof.certificate,
        certain=certain,
        prices=prices,
        seconds=time.monotonic() - started,
        regime=result.regime.value,
        status=status,
        n_scanned_again=result.n_scanned_again,
    )


@dataclass(frozen=True)
class Limits:
    """Value of staying unmatched, and where a solve may stop."""

    outside: float
    """Value of a row without a column; -inf if every row must have one."""
    tolerance: float
    deadline: float
    """Time of ``time.monotonic`` after which the best match so far is returned."""


def _solve(
    sides: tuple[Float[Tensor, "n size"], Float[Tensor, "m size"]],
    moments: tuple[Moments, Moments],
    limits: Limits,
    resources: SolverResources,
) -> Result:
    """Match rows to at least as many columns, whatever the vectors and the memory."""
    (x, y), outside = sides, limits.outside
    small = len(x) * len(y) <= SMALL
    regime, device = _regime(resources, x, small)
    sizes = plan(len(x), len(y), resources.memory_gib, device, regime)
    centre = None
    if len(x) == len(y) and outside == -math.inf and has_common_part(moments):
        centre = common_centre(x, y)
    products = Products(x, y, sizes, centre)
    if centre is None:
        products.moments = moments
    in_time, again = True, 0
    if small and products.held is not None and time.monotonic() <= limits.deadline:
        columns, prices = shortest_paths(products.held.numpy(), outside)
    else:
        columns, prices, in_time, again = run_stages(
            products, sizes.length, outside, limits.tolerance, limits.deadline
        )
    proof = prove(products, columns, prices, outside)
    if in_time and _missed(proof, limits.tolerance) and time.monotonic() < limits.deadline:
        exact = finish(products, proof, prices, outside)
        if exact is not None and (better := prove(products, *exact, outside)).slack < proof.slack:
            (columns, prices), proof = exact, better
    if centre is not None:
        prices = prices + inner(y, centre)
    return Result(columns, prices, proof, sizes.regime, in_time, again)


def _check_limits(unmatched: float | None, tolerance: float, time_limit: float | None) -> None:
    """Raise ``InputError`` for limits without meaning."""
    if unmatched is not None and not math.isfinite(unmatched):
        raise InputError(
            f"unmatched is {unmatched}; give a finite number, or None if every row must have a "
            "partner"
        )
    check_tolerance(tolerance)
    if time_limit is not None and not time_limit >= 0:
        raise InputError(f"time_limit is {time_limit}; give seconds, or None for no limit")


def check_tolerance(tolerance: float) -> None:
    """Raise ``InputError`` for a tolerance that is not a gap to stop at."""
    if not 0 <= tolerance < math.inf:
        raise InputError(
            f"tolerance is {tolerance}; give the gap to stop at, a finite number of at least 0 (0: "
            "the optimum itself)"
        )


def _missed(proof: Proof, tolerance: float) -> bool:
    gap = proof.certificate.optimal_to
    assert gap is not None
    return gap > tolerance


def _regime(
    resources: SolverResources, x: Tensor, small: bool
) -> tuple[Regime | None, torch.device]:
    """Return the regime, None if it depends on memory, and the device that computes products.

    A small problem stays on the CPU, which solves it before a GPU has read the vectors.
    """
    names = [member.value for member in Regime]
    regime, device = resources.regime, resources.device
    if regime is not None and regime not in names:
        raise InputError(f"there is no regime {regime!r}; choose one of {', '.join(names)}")
    chosen = None if regime is None else Regime(regime)
    place = CPU
    if device is not None:
        place = usable_device(device)
    elif chosen in (None, Regime.DEVICE):
        place = x.device
        if x.is_cpu and not (small and chosen is None) and torch.cuda.is_available():
            place = torch.device("cuda")
    if place != CPU and chosen not in (None, Regime.DEVICE):
        raise InputError(f"regime {regime!r} uses the CPU; leave out device={str(place)!r}")
    return chosen, place


def _sides(
    x_a: np.ndarray | Tensor, x_b: np.ndarray | Tensor
) -> tuple[Float[Tensor, "n_a size"], Float[Tensor, "n_b size"]]:
    """Return both sides as tensors; ``InputError`` for other shapes and types."""
    a, b = torch.as_tensor(x_a).detach(), torch.as_tensor(x_b).detach()
    for name, tensor in (("x_a", a), ("x_b", b)):
        if tensor.ndim != 2 or 0 in tensor.shape or not tensor.is_floating_point():
            raise InputError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; give floating-point "
                "numbers with one vector in each row, and at least one row"
            )
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"vectors of x_a have {a.shape[1]} numbers, those of x_b {b.shape[1]}; both sides "
            "need vectors of the same size"
        )
    return a, b


def _check_lengths(*longest: float) -> None:
    """Raise ``InputError`` if float32 cannot multiply vectors whose largest lengths are these."""
    for name, length in zip(("x_a", "x_b"), longest, strict=True):
        if not math.isfinite(length):
            raise InputError(f"{name} holds NaN or infinite values; leave those rows out")
    for size in (*longest, math.prod(longest)):
        if size and not 1e-15 < size < 1e15:
            raise InputError(
                f"lengths of vectors are up to {longest[0]:.0e} and {longest[1]:.0e}: they or "
                "their products are outside 1e-15 to 1e15, too near the ends of float32; scale them"
            )

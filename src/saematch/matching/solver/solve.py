"""``solve_assignment``: the best one-to-one match of two sets of vectors, with a proof."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.match import Certificate
from saematch.matching.centring import common_centre, inner, lengths
from saematch.matching.solver.certificate import Proof, prove
from saematch.matching.solver.finish import finish
from saematch.matching.solver.products import CPU, Products, Regime, plan
from saematch.matching.solver.stages import run_stages


class Status(Enum):
    """How a solve ended; the value is the message."""

    OPTIMAL = "optimal within the tolerance"
    TIME_LIMIT = "the time limit passed before the tolerance was met"
    TOO_MANY_TIES = (
        "the tolerance was not met, and too many pairs are equally good to tell which is best"
    )


@dataclass(frozen=True)
class Solution:
    """A match, what was proved of it, and how it was found."""

    columns: Int64[np.ndarray, " n_a"]
    """Of each row of ``x_a``, its partner among the rows of ``x_b``; -1 where it has none."""
    certificate: Certificate
    """Value and bound; without ``unmatched`` also chance, gap over chance and ``n_90``; and the
    share of pairs that are certain."""
    certain: Bool[np.ndarray, " n_a"]
    """Of each row of ``x_a``, whether its pair is proven to be in every optimal match."""
    prices: Float64[np.ndarray, " n_b"]
    """The dual variables of ``x_b`` that prove the bound: it is at least
    ``sum_i max_j (s_ij - prices_j) + sum_j prices_j``, where the maximum is taken as at least 0 if
    there are more rows in ``x_a`` than in ``x_b``, and otherwise as at least ``unmatched``."""
    seconds: float
    regime: str
    """How similarities were held: ``whole``, ``blocks`` or ``device``."""
    status: Status
    n_scanned_again: int
    """Rows whose list of candidates had to be made again; each costs a row of the product."""

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


def solve_assignment(
    x_a: np.ndarray | Tensor,
    x_b: np.ndarray | Tensor,
    *,
    unmatched: float | None = None,
    tolerance: float = 1e-6,
    time_limit: float | None = None,
    memory_gib: float | None = None,
    device: str | torch.device | None = None,
    regime: str | None = None,
    progress: bool = False,
) -> Solution:
    """Match rows of ``x_a`` and ``x_b`` one to one for the largest total inner product.

    Every row of the smaller side gets a partner; with ``unmatched`` it may stay without one where
    that is better, staying being worth ``unmatched`` to it.

    A forward auction with epsilon-scaling (Bertsekas 1988; ``docs/solver.md``) on float32 products,
    with float64 prices. The result's ``value`` and ``bound`` are then computed apart from it, in
    one blocked pass, exact to float64 rounding. For two sides of one size and no ``unmatched``, one
    common vector is first subtracted from all rows. This subtracts the same number from the value
    of every permutation, and the number is added to value, bound and chance at the end.

    Time is that of one float32 product of both sides (``2 n_a n_b size`` flops) and little more if
    the similarities fit into memory; if not, it is that of two and of the rows scanned again.
    Memory beside the input is ``4 n_a n_b`` bytes, or, if that is more than there is, ``8 K n`` for
    lists of ``K <= 2048`` candidates. A float32 copy of ``x_b`` comes on top if a common vector is
    subtracted; otherwise copies of inputs that are not float32.

    Args:
        x_a: ``[n_a, size]``, vectors of one side, of any floating type.
        x_b: ``[n_b, size]``, vectors of the other side.
        unmatched: what staying without a partner is worth; None if that is not allowed.
        tolerance: the gap to stop at, ``(bound - value) / (bound - chance)``, where chance is the
            expected value of a random match; with ``unmatched``, ``(bound - value) / |bound|``. 0
            is the optimum itself.
        time_limit: seconds after which the best match so far is taken. Making the first lists,
            proving the result, and what is under way when the time is up come on top.
        memory_gib: memory to use beside the input; by default half of what is free.
        device: where products are computed and lists made; by default the device of ``x_a``, or
            CUDA if there is one, or the CPU.
        regime: how similarities are held: ``whole`` in memory, ``blocks`` (the best of each row, on
            the CPU) or ``device`` (the same, with products on ``device``); by default what fits.
        progress: show bars on standard error.

    Raises:
        ValueError: for arrays of other shapes, empty ones, values that are not finite or out of
            float32's range, settings without meaning, and too little memory.
    """
    started = time.monotonic()
    a, b = _checked(x_a, x_b)
    if unmatched is not None and not math.isfinite(unmatched):
        raise InputError(
            f"unmatched is {unmatched}; give a finite number, or None for no such choice"
        )
    check_tolerance(tolerance)
    if time_limit is not None and not time_limit >= 0:
        raise InputError(f"time_limit is {time_limit}; give seconds, or None for no limit")
    swapped = len(a) > len(b)
    x, y = (b, a) if swapped else (a, b)
    outside = -math.inf if unmatched is None else float(unmatched)
    chosen, place = _regime(regime, device, a)
    how = plan(len(x), len(y), memory_gib, place, chosen)
    permuted = len(x) == len(y) and unmatched is None
    centre = common_centre(x, y) if permuted else None
    products = Products(x, y, how, place, progress, centre)
    deadline = math.inf if time_limit is None else started + time_limit
    auctioned = run_stages(products, how.length, outside, tolerance, deadline)
    columns, prices, in_time, again = auctioned
    proof = prove(products, columns, prices, outside)
    if in_time and _missed(proof, tolerance) and time.monotonic() < deadline:
        exact = finish(products, proof, prices, outside)
        if exact is not None and (better := prove(products, *exact, outside)).slack < proof.slack:
            (columns, prices), proof = exact, better
    status = Status.OPTIMAL
    if _missed(proof, tolerance):
        status = Status.TOO_MANY_TIES if in_time else Status.TIME_LIMIT
    certain = proof.certain
    if centre is not None:
        prices = prices + inner(y, centre)
    if swapped:
        rows, taken = np.flatnonzero(columns >= 0), columns[columns >= 0]
        columns, certain = np.full(len(y), -1), np.zeros(len(y), bool)
        columns[taken], certain[taken] = rows, proof.certain[rows]
        prices = proof.profits
    return Solution(
        columns=columns,
        certificate=proof.certificate,
        certain=certain,
        prices=prices,
        seconds=time.monotonic() - started,
        regime=how.regime.value,
        status=status,
        n_scanned_again=again,
    )


def check_tolerance(tolerance: float) -> None:
    """Raise ``InputError`` for a tolerance that is not a gap to stop at."""
    if not 0 <= tolerance < math.inf:
        raise InputError(
            f"tolerance is {tolerance}; give the gap to stop at, a finite number of at least 0 (0: "
            "the optimum itself)"
        )


def check_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; ``InputError`` if there is none of that name."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"device={device!r} is not the name of a device, such as cpu, cuda or cuda:1"
        ) from error


def _usable_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; ``InputError`` if it computes nothing here."""
    place = check_device(device)
    try:
        torch.empty(1, device=place).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): take cpu, "
            "or leave it out for a GPU where there is one"
        ) from error
    return place


def _missed(proof: Proof, tolerance: float) -> bool:
    gap = proof.certificate.optimal_to
    assert gap is not None
    return gap > tolerance


def _regime(
    regime: str | None, device: str | torch.device | None, a: Tensor
) -> tuple[Regime | None, torch.device]:
    """Return the regime, if it is decided already, and where products are computed."""
    names = [known.value for known in Regime]
    if regime is not None and regime not in names:
        raise InputError(f"there is no regime {regime!r}; choose one of {', '.join(names)}")
    chosen = None if regime is None else Regime(regime)
    place = CPU
    if device is not None:
        place = _usable_device(device)
    elif chosen in (None, Regime.DEVICE):
        place = torch.device("cuda") if a.is_cpu and torch.cuda.is_available() else a.device
    if place != CPU and chosen not in (None, Regime.DEVICE):
        raise InputError(f"regime {regime!r} is of the CPU; leave out device={str(place)!r}")
    return chosen, place


def _checked(
    x_a: np.ndarray | Tensor, x_b: np.ndarray | Tensor
) -> tuple[Float[Tensor, "n_a size"], Float[Tensor, "n_b size"]]:
    sides, sizes = [], []
    for name, side in (("x_a", x_a), ("x_b", x_b)):
        tensor = torch.as_tensor(side).detach()
        if tensor.ndim != 2 or 0 in tensor.shape or not tensor.is_floating_point():
            raise InputError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; give one vector of "
                "floating-point numbers a row, at least one"
            )
        longest = float(lengths(tensor).max())
        if not math.isfinite(longest):
            raise InputError(f"{name} holds NaN or infinite values; leave those rows out")
        sides.append(tensor)
        sizes.append(longest)
    a, b = sides
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"vectors of x_a have {a.shape[1]} numbers, those of x_b {b.shape[1]}; they must be of "
            "one size"
        )
    for size in (*sizes, math.prod(sizes)):
        if size and not 1e-15 < size < 1e15:
            raise InputError(
                f"lengths of vectors are up to {sizes[0]:.0e} and {sizes[1]:.0e}: they or their "
                "products are outside 1e-15 to 1e15, too near the ends of float32; scale them"
            )
    return a, b

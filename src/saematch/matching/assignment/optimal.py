"""The best match there is, with a proof: permutation, rectangular or partial."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch

from saematch.matching.assignment.solve import Status, check_tolerance, solve_assignment
from saematch.matching.match import Match
from saematch.matching.objectives import Factors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChanceLevel:
    """What the best of all partners is worth to a feature if the two layers have nothing in common.

    Flipping the signs of coordinates at random, the same for all vectors of the later layer, keeps
    every length, every coordinate's scale and the geometry inside that layer, and takes away what
    it shares with the earlier one. The level is a quantile, over features of the smaller side, of
    their best similarity after that.
    """

    quantile: float = 0.95
    """Share of features without a counterpart that the level turns away."""
    n_features: int = 1024
    """Features to look at, at even distances."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1 or self.n_features < 1:
            raise ValueError(
                f"quantile is {self.quantile} and n_features {self.n_features}; the quantile lies "
                "between 0 and 1, and at least one feature is needed"
            )

    def __call__(self, factors: Factors) -> float:
        """Return the level for a pair of layers."""
        smaller, larger = sorted((factors.X_A, factors.X_B), key=len)
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (smaller.shape[1],), generator=generator) * 2.0 - 1.0
        some = torch.linspace(0, len(smaller) - 1, min(len(smaller), self.n_features)).long()
        flipped = smaller[some.to(smaller.device)].float() * signs.to(smaller.device)
        best = torch.cat([(part @ larger.float().T).amax(1) for part in flipped.split(128)])
        return best.quantile(self.quantile).item()


@dataclass(frozen=True)
class Optimal:
    """The match of the largest total similarity, and a certificate (``solve_assignment``).

    Layers of one width get a permutation; of two widths, every feature of the smaller one gets a
    partner. With ``unmatched`` a feature of the smaller one may stay without.
    """

    unmatched: float | ChanceLevel | None = None
    """What staying without a partner is worth to a feature; None if each must have one."""
    tolerance: float = 1e-6
    """The gap over chance to stop at (``Certificate``), a finite number; with ``unmatched`` the
    relative gap. 0 for the optimum itself."""
    time_limit: float | None = None
    """Seconds, of one match, after which the best so far is taken."""
    memory_gib: float | None = field(default=None, repr=False)
    """Memory to use beside the vectors; None is half of what is free."""
    device: str | None = field(default=None, repr=False)
    """Where to compute products; None is CUDA if there is one."""

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if isinstance(self.unmatched, float) and not math.isfinite(self.unmatched):
            raise ValueError(f"unmatched is {self.unmatched}; give a finite number or null")

    def __call__(self, factors: Factors) -> Match:
        """Return the match; a warning is logged if the tolerance was missed."""
        unmatched = self.unmatched
        solution = solve_assignment(
            factors.X_A,
            factors.X_B,
            unmatched=unmatched(factors) if isinstance(unmatched, ChanceLevel) else unmatched,
            tolerance=self.tolerance,
            time_limit=self.time_limit,
            memory_gib=self.memory_gib,
            device=self.device,
            progress=True,
        )
        if solution.status is not Status.OPTIMAL:
            gap = solution.certificate.optimal_to
            log.warning("gap %.1e above %.1e: %s", gap, self.tolerance, solution.status.value)
        return Match.from_columns(
            torch.from_numpy(solution.columns),
            len(factors.X_B),
            solution.certificate,
        )

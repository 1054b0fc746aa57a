"""The best match there is, with a proof: permutation, rectangular or partial."""

from __future__ import annotations

import logging
from dataclasses import field
from typing import ClassVar

import torch

from saematch.core.match import Match
from saematch.core.specs import NotNegative, Positive, spec
from saematch.matching.levels import ChanceLevel
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.solve import (
    Status,
    check_device,
    check_tolerance,
    solve_assignment,
)

log = logging.getLogger(__name__)


@spec("matcher")
class Optimal:
    """The match of the largest total similarity, and a certificate (``solve_assignment``).

    Layers of one width get a permutation; of two widths, every feature of the smaller one gets a
    partner.

    With ``unmatched`` the match is partial and its objective another one: the sum, over the pairs,
    of the cosine between whitened directions less the level ``c`` of ``ChanceLevel``. A pair whose
    cosine is not above the level would lower the sum, so its features stay unmatched. Value and
    bound are in cosines, and each feature of the smaller side that stays unmatched counts ``c``.
    """

    one_partner: ClassVar[bool] = True

    unmatched: ChanceLevel | None = None
    """What a pair must exceed; None if each feature must have a partner."""
    tolerance: float = 1e-6
    """The gap over chance to stop at (``Certificate``), a finite number; with ``unmatched`` the
    relative gap. 0 for the optimum itself."""
    time_limit: NotNegative | None = None
    """Seconds, of one match, after which the best so far is taken."""
    memory_gib: Positive | None = field(default=None, repr=False)
    """Memory to use beside the vectors; None is half of what is free."""
    device: str | None = field(default=None, repr=False)
    """Where to compute products; None is CUDA if there is one."""

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if self.device is not None:
            check_device(self.device)

    def __call__(self, factors: Factors) -> Match:
        """Return the match; a warning is logged if the tolerance was missed."""
        level = None
        if self.unmatched is not None:
            compared = self.unmatched(factors)
            factors, level = compared.directions, compared.level
        solution = solve_assignment(
            factors.X_A,
            factors.X_B,
            unmatched=level,
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

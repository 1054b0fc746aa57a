"""The optimal match with a proof: a permutation, rectangular or partial."""

from __future__ import annotations

import logging
from dataclasses import field, replace
from typing import ClassVar

import torch

from saematch.core.match import Match
from saematch.core.specs import NotNegative, Positive, spec
from saematch.matching.levels import ChanceLevel
from saematch.matching.matchers.baselines import pair_scores
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.solve import (
    SolverResources,
    Status,
    check_device,
    check_tolerance,
    solve_assignment,
)

log = logging.getLogger(__name__)


@spec("matcher")
class Optimal:
    """The match of the largest total similarity, with a certificate (``solve_assignment``).

    Layers of equal width get a permutation. For different widths, every feature of the narrower
    layer gets a partner.

    With ``unmatched`` the match is partial and maximises another objective: the sum over its pairs
    of the cosine between whitened directions minus the level ``c`` of ``ChanceLevel``. A pair whose
    cosine is not above the level would lower the sum, so its features stay unmatched. Value and
    bound are in cosines; each unmatched feature of the smaller side counts ``c``.
    """

    one_partner: ClassVar[bool] = True

    unmatched: ChanceLevel | None = None
    """Level that a pair must exceed; None if each feature must have a partner."""
    tolerance: float = 1e-6
    """Gap over chance to stop at (``Certificate``), a finite number; the relative gap with
    ``unmatched``. 0 asks for the optimum itself."""
    time_limit: NotNegative | None = None
    """Seconds for one match; the best match so far is then returned."""
    memory_gib: Positive | None = field(default=None, repr=False)
    """Memory to use in addition to the vectors; None is half of the free memory."""
    device: str | None = field(default=None, repr=False)
    """Device that computes products; None is CUDA if it is available."""

    def __post_init__(self) -> None:
        check_tolerance(float(self.tolerance))
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
            resources=SolverResources(self.memory_gib, self.device, progress=True),
        )
        if solution.status is not Status.OPTIMAL:
            gap = solution.certificate.optimal_to
            log.warning("gap %.1e above %.1e: %s", gap, self.tolerance, solution.status.value)
        columns = torch.from_numpy(solution.columns)
        match = Match.from_columns(columns, len(factors.X_B), solution.certificate)
        return replace(match, scores=pair_scores(factors, match))

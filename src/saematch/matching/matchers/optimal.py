"""The optimal match with a proof: a permutation, rectangular or partial."""

from __future__ import annotations

import logging
from dataclasses import field, replace
from typing import ClassVar

import torch

from saematch.core.devices import check_device
from saematch.core.match import Match
from saematch.core.specs import NotNegative, Positive, spec
from saematch.matching.levels import ChanceLevel
from saematch.matching.matchers.matcher import refuse_candidates
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.best_pairs import best_pairs
from saematch.matching.solver.solve import (
    SolverResources,
    Status,
    check_tolerance,
    solve_assignment,
)
from saematch.matching.valued import pair_scores, valued_pairs

log = logging.getLogger(__name__)


@spec("matcher")
class Optimal:
    """The match of the largest total similarity, with a certificate (``solve_assignment``).

    Layers of equal width get a permutation. For different widths, every feature of the narrower
    layer gets a partner.

    With a number as ``unmatched`` the match is partial: it maximises the sum over its pairs of the
    similarity minus this level. A pair whose similarity is not above the level would lower the sum,
    so its features stay unmatched. With ``ChanceLevel`` the similarity is the cosine between
    whitened directions, and the level a cosine ``c``. Value and bound count each unmatched feature
    of the smaller side as the level.

    Candidates are matched exactly by SciPy's sparse solver, without tolerance and limits; the bound
    is the value. Other pairs are never matched. Without ``unmatched``, every feature of the smaller
    side needs a partner, and candidates that allow no such match are refused.

    The match is right where features carry on one by one. It is wrong for features that split,
    merge or end: they also get a partner, and only one.
    """

    one_partner: ClassVar[bool] = True

    unmatched: ChanceLevel | float | None = None
    """Level that a pair must exceed: a number in units of the similarity, or a cosine that is
    computed for each two SAEs; None if each feature must have a partner."""
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

    @property
    def needs_positive(self) -> bool:
        """Whether the level is a number from 0 up."""
        level = self.unmatched
        return level is not None and not isinstance(level, ChanceLevel) and level >= 0

    @property
    def complete(self) -> bool:
        """Whether every feature of the smaller side gets a partner."""
        return self.unmatched is None

    def __call__(self, factors: Factors) -> Match:
        """Return the match; a warning is logged if the tolerance was missed."""
        level = self.unmatched
        if isinstance(level, ChanceLevel):
            compared = level(factors)
            factors, level = compared.directions, compared.level
        solution = solve_assignment(
            factors.X_A,
            factors.X_B,
            unmatched=level,
            tolerance=self.tolerance,
            time_limit=self.time_limit,
            resources=SolverResources(self.memory_gib, self.device),
        )
        if solution.status is not Status.OPTIMAL:
            gap = solution.certificate.optimal_to
            log.warning("gap %.1e above %.1e: %s", gap, self.tolerance, solution.status.value)
        columns = torch.from_numpy(solution.columns)
        match = Match.from_columns(columns, len(factors.X_B), solution.certificate)
        return replace(match, scores=pair_scores(factors, match))

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the optimal match of candidate pairs.

        Raises ``InputError`` if every feature of the smaller side must have a partner but the
        candidates allow no such match.
        """
        refuse_candidates(self)
        assert not isinstance(self.unmatched, ChanceLevel)
        chosen = best_pairs(candidates, self.unmatched)
        return valued_pairs(candidates.only(chosen), self.unmatched or 0.0, exact=True)

    def candidate_refusal(self) -> str | None:
        """Return why the level cannot be computed from candidates; None if it can."""
        if not isinstance(self.unmatched, ChanceLevel):
            return None
        return "ChanceLevel reads vectors: set matcher.unmatched to a number, such as 0.0"

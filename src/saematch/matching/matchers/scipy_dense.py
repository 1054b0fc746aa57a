"""SciPy's dense solver: the usual choice, and the oracle of the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from saematch.core.match import Certificate, Match
from saematch.core.specs import spec
from saematch.matching.centring import chance_value
from saematch.matching.objectives.factors import Factors
from saematch.matching.valued import pair_scores


@spec("matcher")
class Scipy:
    """The optimal match by ``scipy.optimize.linear_sum_assignment``; it comes without a bound.

    Every feature of the smaller side gets a partner. Time grows with the cube of the width, to
    minutes at 16,384 features, and signals wait until it ends. It needs ``16 F_A F_B`` bytes of
    memory.
    """

    one_partner: ClassVar[bool] = True
    complete: ClassVar[bool] = True

    def __call__(self, factors: Factors) -> Match:
        """Return the optimal match."""
        similarity = (factors.X_A.double() @ factors.X_B.double().T).cpu().numpy()
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        partner = np.full(len(factors.X_A), -1)
        partner[rows] = columns
        value = float(similarity[rows, columns].sum())
        certificate = Certificate(value, None, chance_value(factors.X_A, factors.X_B))
        match = Match.from_columns(torch.from_numpy(partner), len(factors.X_B), certificate)
        return replace(match, scores=pair_scores(factors, match))

"""Baselines that ignore the weights, for comparison with every method."""

from __future__ import annotations

from typing import ClassVar

import torch

from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.specs import Seed, spec
from saematch.matching.objectives.factors import Factors
from saematch.matching.valued import valued


@spec("matcher")
class Identity:
    """Feature ``i`` is feature ``i`` (the paper's "vanilla").

    This is a random match unless the SAEs share their initialisation.
    """

    one_partner: ClassVar[bool] = True

    def __call__(self, factors: Factors) -> Match:
        """Return the baseline; it depends only on the number of factors."""
        return valued(torch.arange(len(factors.X_A)), factors)


@spec("matcher")
class Random:
    """A permutation drawn at random: one for each seed and pair of SAEs (``Factors.pair``).

    ``Arm.match`` names the pair by layer, site, identifier and revision of both SAEs. Factors
    without a name share one permutation for each seed.
    """

    one_partner: ClassVar[bool] = True

    seed: Seed = 0

    def __call__(self, factors: Factors) -> Match:
        """Return the baseline; it depends only on the number of factors and the pair's name."""
        n_source, n_target = len(factors.X_A), len(factors.X_B)
        seed = int(hashed([self.seed, factors.pair])[:16], 16)
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randperm(max(n_source, n_target), generator=generator)[:n_source]
        return valued(columns, factors)

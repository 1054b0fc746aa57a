"""Matchers: algorithms that turn a similarity into a match, one in each file."""

from saematch.matching.levels import ChanceLevel
from saematch.matching.matchers.baselines import Identity, Random
from saematch.matching.matchers.matcher import CandidateMatcher, Matcher
from saematch.matching.matchers.nearest import Greedy, MutualNearest
from saematch.matching.matchers.optimal import Optimal
from saematch.matching.matchers.scipy_dense import Scipy
from saematch.matching.matchers.sinkhorn import Sinkhorn
from saematch.matching.matchers.top_k import TopK

__all__ = [
    "CandidateMatcher",
    "ChanceLevel",
    "Greedy",
    "Identity",
    "Matcher",
    "MutualNearest",
    "Optimal",
    "Random",
    "Scipy",
    "Sinkhorn",
    "TopK",
]

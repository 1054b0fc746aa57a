"""Features that a page offers first: those whose paths pass ``verify``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.effects import NONE
from saematch.explorer.links import partners
from saematch.explorer.paths import Paths
from saematch.explorer.run_data import RunData

N_START = 8
"""Number of features that a page offers first."""


def verified_start(run: RunData) -> list[tuple[SaeKey, int, int]]:
    """Return features of the first arm with the longest paths that pass ``verify``.

    Each entry has an SAE, a feature, and how many consecutive links forward from it pass. Longer
    paths come first, then paths with a greater sum of effects. A path is offered once, by its
    first feature. The list is empty in a run without ``verify``. This choice is ours.
    """
    paths = Paths(run, run.arms[0])
    lengths = {key: np.zeros(size, np.int64) for key, size in run.saes.items()}
    effects = {key: np.zeros(size) for key, size in run.saes.items()}
    is_reached = {key: np.zeros(size, bool) for key, size in run.saes.items()}
    for pair in sorted(_pairs(paths), key=lambda pair: pair.target.layer, reverse=True):
        tested = run.verified(pair)
        match = run.match(paths.arm, pair)
        if tested is None or match is None:
            continue
        best = partners(match, 1).best
        effect = _passing(tested[tested["arm"] == paths.arm], len(best))
        source = np.flatnonzero(~np.isnan(effect) & (best != NONE))
        target = best[source]
        lengths[pair.source][source] = 1 + lengths[pair.target][target]
        effects[pair.source][source] = effect[source] + effects[pair.target][target]
        is_reached[pair.target][target] = True
    candidates = [
        (-lengths[key][feature], -effects[key][feature], number, feature)
        for number, key in enumerate(run.saes)
        for feature in np.flatnonzero((lengths[key] > 0) & ~is_reached[key]).tolist()
    ]
    keys = list(run.saes)
    return [
        (keys[number], feature, int(-length))
        for length, _, number, feature in sorted(candidates)[:N_START]
    ]


def _pairs(paths: Paths) -> list[Pair]:
    """Return the pairs that paths take forward, to a higher layer of the same suite."""
    steps = (paths.next_pair(key, forward=True, without=set()) for key in paths.run.saes)
    return [
        pair
        for pair in steps
        if pair is not None and pair.within_suite and pair.target.layer > pair.source.layer
    ]


def _passing(tested: pd.DataFrame, n: int) -> np.ndarray:
    """Return the effect of each feature that passes, and NaN for others."""
    passing = tested[tested["finding"] == "passes"]
    effect = np.full(n, np.nan)
    effect[passing["feature"].to_numpy()] = passing["effect"].to_numpy()
    return effect

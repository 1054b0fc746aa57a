"""The squared error of single features: its distribution, and examples from both ends."""

from __future__ import annotations

import numpy as np
import torch

from saematch.core.pairs import Place
from saematch.core.results import Row
from saematch.evaluate.weights import PARTS, squared_errors
from saematch.matching.matches import MatchSet
from saematch.sae.folding import fold
from saematch.sae.suites import Saes

N_BINS = 60
N_EXAMPLES = 10
"""Of the least and of the greatest errors, each."""


def histogram_rows(saes: Saes, matches: MatchSet) -> list[Row]:
    """Return the rows of ``feature_mse_histogram``: numbers of pairs by decoder error (figure 5).

    The edges, the same for all arms of a place, are evenly spaced between the least and the
    greatest error of any.
    """
    rows: list[Row] = []
    for place in matches.places:
        errors = {
            arm: _errors(saes, matches, arm, place)["W_dec"].numpy() for arm in matches.by_arm
        }
        every = np.concatenate(list(errors.values()))
        edges = np.histogram_bin_edges(every, N_BINS)
        for arm, of_arm in errors.items():
            counts = np.histogram(of_arm, edges)[0]
            for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
                ends: Row = {"mse_low": float(low), "mse_high": float(high), "n_pairs": int(n)}
                rows.append({**place._asdict(), "arm": arm, **ends})
    return rows


def example_rows(saes: Saes, matches: MatchSet) -> list[Row]:
    """Return the rows of ``features``: the pairs of least and of greatest decoder error."""
    rows: list[Row] = []
    for place in matches.places:
        for arm, of_arm in matches.by_arm.items():
            match, errors = of_arm[place], _errors(saes, matches, arm, place)
            order = errors["W_dec"].argsort(stable=True).tolist()
            ends = order[:N_EXAMPLES] + order[N_EXAMPLES:][-N_EXAMPLES:]
            for pair in ends:
                rows.append(
                    {
                        **place._asdict(),
                        "arm": arm,
                        "rank": order.index(pair),
                        "feature_from": int(match.rows[pair]),
                        "feature_to": int(match.columns[pair]),
                        **{f"mse_{part}": errors[part][pair].item() for part in PARTS},
                    }
                )
    return rows


def _errors(saes: Saes, matches: MatchSet, arm: str, place: Place) -> dict[str, torch.Tensor]:
    earlier, later = (fold(saes[key], "threshold") for key in (place.earlier, place.later))
    return squared_errors(earlier, later, matches.by_arm[arm][place])

"""The table ``likeness`` against values that were computed by hand."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from saematch.core.match import Match
from saematch.evaluate import likeness
from saematch.evaluate.likeness import likeness_rows
from saematch.matching.objectives.feature_texts import FeatureTexts

ANGLES = np.array([0, 30, 60, 90, 120])


def side(explainers, features, n_features=7):
    features = torch.tensor(features)
    return FeatureTexts(features, ("x",) * len(features), tuple(explainers), n_features)


def directions(degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)


SOURCE = side("aab", [0, 2, 5])
TARGET = side("abbab", [1, 2, 3, 4, 6])
VECTORS = directions(ANGLES[:3]), directions(ANGLES)
# Source features 0, 2, 5 at 0, 30, 60 degrees; target features 1, 2, 3, 4, 6 at 0 to 120 degrees
ENTRIES = [(0, 1), (0, 3), (0, 5), (1, 1), (2, 4), (5, 2), (5, 6)]
"""Feature 1 of the source and feature 5 of the target have no explanation."""


def rows_of(vectors=VECTORS, entries=ENTRIES, seed=0):
    rows, columns = torch.tensor(entries).T.contiguous()
    match = Match(rows, columns, torch.full((len(rows),), 0.3).double(), 7, 7)
    return {
        row.pop("explainers"): row for row in likeness_rows((SOURCE, TARGET), vectors, match, seed)
    }


@pytest.mark.parametrize("at_once", [1, 1 << 13])
@pytest.mark.parametrize("form", [np.asarray, csr_array])
def test_entries_of_one_explainer_and_of_two_are_apart(form, at_once, monkeypatch):
    monkeypatch.setattr(likeness, "ENTRIES_AT_ONCE", at_once)
    rows = rows_of(tuple(map(form, VECTORS)))
    cosine = lambda *degrees: np.cos(np.deg2rad(degrees)).mean()  # noqa: E731
    # (0, 1) and (2, 4) by a; (5, 2) and (5, 6) by b; only (0, 3) by a and b
    assert rows["same"]["likeness"] == pytest.approx(cosine(0, 60, 30, 60))
    assert rows["same"]["n_entries"] == 4
    assert rows["different"]["likeness"] == pytest.approx(cosine(60))
    assert rows["different"]["n_entries"] == 1


def test_random_pairs_have_the_same_sources_and_kinds_of_explainers():
    entries = [(0, 1), (0, 3), (2, 4)]
    seen = {"same": set(), "different": set()}
    for seed in range(60):
        for name, row in rows_of(entries=entries, seed=seed).items():
            seen[name].add(round(row["likeness_random"], 6))
    cosines = VECTORS[0] @ VECTORS[1].T
    by_a, by_b = [0, 3], [1, 2, 4]
    assert seen["different"] == {round(cosines[0, j], 6) for j in by_b}
    same = {round((cosines[0, i] + cosines[1, j]) / 2, 6) for i in by_a for j in by_a}
    assert seen["same"] == same
    assert rows_of(seed=3) == rows_of(seed=3)


def test_a_kind_without_entries_has_no_row():
    assert set(rows_of(entries=[(0, 1)])) == {"same"}
    assert rows_of(entries=[(0, 5), (1, 1)]) == {}

"""The table of links: hand-computed rows, and the two files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from hand_run import write_hand_run, write_parquet, write_verified
from matches import of_dense, permutation
from saematch.core.errors import InputError
from saematch.core.pairs import Pair
from saematch.core.tables import rows_of
from saematch.explorer.exports.table import links_table, save_table
from saematch.explorer.run_data import PROFILE, RunData

PAIR, LATER = Pair.of_layers(0, 1), Pair.of_layers(1, 2)
SOFT = of_dense(torch.tensor([[0.25, 0.75], [0.0, 1.0], [0.0, 0.0]]))


@pytest.fixture
def run(tmp_path):
    matches = {("m", PAIR): SOFT, ("n", LATER): permutation(0, 2)}
    explanations = {PAIR.source: ["=SUM(A1)", None, "c"], PAIR.target: ["d", "e"]}
    folder = write_hand_run(tmp_path / "run", matches, explanations)
    profile = pd.DataFrame({"feature": range(3), "density": [0.5, 0.25, 0.125]})
    write_parquet(folder / PROFILE / f"{PAIR.source.label}.parquet", profile)
    write_verified(folder, PAIR, [
        {"arm": "m", "feature": 0, "partner": 1, "off_rate": 0.5, "effect": 0.6, "effect_low": 0.4,
         "effect_high": 0.8, "floor_95": 0.1, "finding": "passes"},
        {"arm": "other", "feature": 1, "partner": 1, "off_rate": 0.1, "effect": 0.1,
         "effect_low": 0.1, "effect_high": 0.1, "floor_95": 0.1, "finding": "fails"},
    ])  # fmt: skip
    return RunData.open(folder)


def test_rows_are_those_counted_by_hand(run):
    table, n_left_out = links_table(run, ["m"], [PAIR])
    assert n_left_out == 0
    assert table[["source_feature", "target_feature", "rank", "weight"]].values.tolist() == [
        [0, 1, 1, 0.75], [0, 0, 2, 0.25], [1, 1, 1, 1.0],
    ]  # fmt: skip
    assert table["source_density"].tolist() == [0.5, 0.5, 0.25]
    assert table["target_density"].isna().all()
    assert table["score"].isna().all()
    assert table["effect"].fillna(-1).tolist() == [0.6, -1, -1]
    assert table["finding"].tolist()[0] == "passes"
    assert table["finding"].isna().tolist() == [False, True, True]
    assert table["source_explanation"].fillna("-").tolist() == ["=SUM(A1)", "=SUM(A1)", "-"]
    assert table["target_explanation"].tolist() == ["e", "d", "e"]
    assert (table["source_layer"] == 0).all() and (table["target_suite"] == "default").all()


def test_top_arms_and_pairs_choose_rows_and_count_the_rest(run):
    table, n_left_out = links_table(run, ["m", "n"], [PAIR, LATER], top=1)
    assert n_left_out == 1
    assert table["arm"].tolist() == ["m", "m", "n", "n"]
    assert (table["rank"] == 1).all()
    assert links_table(run, ["n"], [PAIR, LATER]).frame["source_layer"].tolist() == [1, 1]
    with pytest.raises(InputError, match="matched none of the chosen pairs"):
        links_table(run, ["n"], [PAIR])


def test_both_files_have_the_same_rows_and_csv_is_safe_in_spreadsheets(run, tmp_path):
    table = links_table(run, ["m", "n"], [PAIR, LATER]).frame
    for name in ("a.csv", "a.parquet"):
        save_table(table, tmp_path / name)
    assert rows_of(pd.read_parquet(tmp_path / "a.parquet")) == rows_of(table)
    csv = pd.read_csv(tmp_path / "a.csv")
    assert csv["source_explanation"][0] == "'=SUM(A1)"
    assert list(csv) == list(table)
    np.testing.assert_allclose(csv["weight"], table["weight"])


def test_scores_of_a_match_are_exported(tmp_path):
    match = permutation(0, 3)
    scores = torch.tensor([0.1, 0.2, 0.3]).double()
    scored = replace(match, scores=scores)
    key = ("m", PAIR)
    run = RunData.open(write_hand_run(tmp_path, {key: scored}))
    table = links_table(run, ["m"], [PAIR]).frame
    assert table["score"].round(3).tolist() == [0.1, 0.2, 0.3]
    assert table["target_feature"].tolist() == match.columns.tolist()

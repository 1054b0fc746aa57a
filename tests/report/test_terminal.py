from saematch.report.terminal import _proven


def test_the_share_that_carries_the_value_is_one_of_pairs_not_of_features():
    row = {"arm": "a", "gap": None, "gap_over_chance": 0.0, "certain": None,
           "n_90": 30, "n_matched": 20, "n_entries": 60}  # fmt: skip
    (line,) = _proven({"matches": [row]})
    assert line.endswith("in as few as 50% of them")

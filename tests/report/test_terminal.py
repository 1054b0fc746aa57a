from pathlib import Path

from saematch.core.pairs import Pair
from saematch.core.results import Results
from saematch.report.terminal import print_results


def test_the_share_that_carries_the_value_is_one_of_pairs_not_of_features(capsys):
    row = {"arm": "a", "gap": None, "gap_over_chance": 0.0, "certain": None,
           "n_90": 30, "n_matched": 20, "n_entries": 60}  # fmt: skip
    results = Results("match", {}, {}, tables={"matches": [Pair.of_layers(0, 1).columns() | row]})
    print_results(results, Path("run"))
    assert "in as few as 50% of them" in capsys.readouterr().out

"""Lists for Neuronpedia's API."""

import pytest

from hand_run import write_hand_run
from matches import permutation
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.exports.neuronpedia import paths_lists
from saematch.explorer.paths import Node
from saematch.explorer.run_data import RunData

SAES = {"0": {"neuronpedia_id": "gpt2-small/0-res-jb"}, "1": {"neuronpedia_id": None},
        "2": {"neuronpedia_id": "gpt2-small/2-res-jb"}}  # fmt: skip


def run_of(tmp_path, saes):
    matches = {("m", Pair.of_layers(n, n + 1)): permutation(n, 150) for n in range(2)}
    return RunData.open(write_hand_run(tmp_path, matches, None, {"saes": saes}))


def test_features_on_a_path_are_listed_if_neuronpedia_has_their_sae(tmp_path):
    lists = paths_lists(run_of(tmp_path, SAES), "m", [Node(SaeKey("default", 0), 5)])
    last = int(permutation(1, 150).columns[permutation(0, 150).columns[5]])
    assert lists.bodies == [{"listId": "", "featuresToAdd": [
        {"modelId": "gpt2-small", "layer": "0-res-jb", "index": "5",
         "description": "path of 0/5: 0/5"},
        {"modelId": "gpt2-small", "layer": "2-res-jb", "index": str(last),
         "description": f"path of 0/5: 2/{last}"},
    ]}]  # fmt: skip
    assert (lists.n_features, lists.n_left_out) == (2, 1)


def test_a_request_has_at_most_100_features(tmp_path):
    starts = [Node(SaeKey("default", 0), feature) for feature in range(120)]
    lists = paths_lists(run_of(tmp_path, SAES), "m", starts)
    assert [len(body["featuresToAdd"]) for body in lists.bodies] == [100, 100, 40]


def test_saes_that_neuronpedia_lacks_are_refused(tmp_path):
    with pytest.raises(InputError, match="have no neuronpedia_id"):
        paths_lists(run_of(tmp_path, {}), "m", [Node(SaeKey("default", 0), 5)])

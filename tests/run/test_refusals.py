from saematch.core.pairs import Pair, Refusal
from saematch.run.refusals import path_refusals


def test_paths_that_end_for_one_arm_name_it():
    pairs = [Pair.of_layers(0, 1), Pair.of_layers(1, 2), Pair.of_layers(2, 3)]
    refused = [Refusal(pairs[1], "matching", "too early", "late")]
    why = "no path goes beyond layer 1: the arm late cannot match the next pair: too early"
    assert path_refusals(pairs, refused) == [Refusal(p, "paths", why) for p in pairs[1:]]

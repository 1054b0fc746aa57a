from conftest import random_sae
from saematch.core.pairs import Pair, Refusal
from saematch.evaluate.evaluation import PairFacts
from saematch.evaluate.paths import Paths
from saematch.sae.recorders import Models
from saematch.sae.suites import SaeFacts


def facts_of(pair):
    """Return a pair before it is matched."""
    source, target = (SaeFacts.of(random_sae(key.layer, layer=key.layer)) for key in pair)
    return PairFacts(pair, source, target, Models())


def test_paths_that_end_for_one_arm_name_it():
    pairs = [Pair.of_layers(0, 1), Pair.of_layers(1, 2), Pair.of_layers(2, 3)]
    refused = [Refusal(pairs[1], "matching", "too early", "late")]
    why = "no path goes beyond layer 1: the arm late cannot match the next pair: too early"
    reasons = Paths().refusals([facts_of(pair) for pair in pairs], refused)
    assert list(reasons) == [(pair, why) for pair in pairs[1:]]


def test_paths_end_where_co_activation_is_not_counted_but_not_where_no_layer_is_skipped():
    pairs = [Pair.of_layers(0, 1), Pair.of_layers(1, 2)]
    facts = [facts_of(pair) for pair in pairs]
    assert not list(Paths().refusals(facts, [Refusal(pairs[0], "skipping", "no layer")]))
    ended = list(Paths().refusals(facts, [Refusal(pairs[0], "co_activation", "no tokens")]))
    assert ended == [(pair, "no path goes beyond layer 0: no tokens") for pair in pairs]


def test_paths_of_another_suite_go_on():
    pairs = [Pair.of_layers(0, 1, suite) for suite in ("x", "y")]
    refused = [Refusal(pairs[0], "matching", "too early")]
    (ended,) = Paths().refusals([facts_of(pair) for pair in pairs], refused)
    assert ended == (pairs[0], "no path goes beyond layer 0 of x: too early")

from dataclasses import replace
from typing import ClassVar

import pytest

from conftest import random_sae, tiny_overrides
from saematch.app.configuration import build
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, Refusal, SaeKey
from saematch.evaluate.evaluation import Evaluation, PairFacts
from saematch.evaluate.paths import Paths
from saematch.runs.refusals import find_refusals
from saematch.sae.recorders import Models
from saematch.sae.suites import SaeFacts, SaeShelf


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


class OnTexts(Evaluation):
    """An evaluation of another package, which has a reason of its own for one pair."""

    reads_texts: ClassVar[bool] = True

    def refusal(self, facts):
        return "too early" if facts.pair.source.layer == 0 else None


class OnWeights(OnTexts):
    reads_texts: ClassVar[bool] = False


def test_an_evaluation_on_texts_leaves_out_saes_that_read_no_hidden_states():
    early, inner, late = (facts_of(Pair.of_layers(n, n + 1)) for n in range(3))
    origin = replace(inner.target.origin, site="mlp_out")
    inner = inner._replace(target=replace(inner.target, origin=origin))
    reasons = dict(OnTexts().refusals([early, inner, late], []))
    assert reasons[early.pair] == "too early"
    assert "(site mlp_out)" in reasons[inner.pair]
    assert late.pair not in reasons
    assert dict(OnWeights().refusals([early, inner, late], [])) == {early.pair: "too early"}


@pytest.mark.parametrize("evaluations", ["co_activation,paths", "paths,co_activation"])
def test_paths_end_in_every_order_of_the_evaluations(tiny, evaluations):
    experiment, _ = build([*tiny_overrides(tiny), f"evaluations=[{evaluations}]"])
    saes = {}
    for suite, site in (("default", "resid_post"), ("mlp", "mlp_out")):
        for layer in (0, 1):
            sae = random_sae(layer, layer=layer)
            origin = replace(sae.origin, site=site, sae_id=f"{suite}/{layer}")
            saes[SaeKey(suite, layer)] = replace(sae, origin=origin)
    pairs = [Pair.of_layers(0, 1, suite) for suite in ("default", "mlp")]
    refused = find_refusals(experiment, pairs, SaeShelf.of(saes))
    assert [(r.pair, r.evaluation) for r in refused] == [
        (pairs[1], "co_activation"),
        (pairs[1], "paths"),
    ]


def test_more_partners_than_features_are_refused_before_work_begins(tiny):
    pairs, saes = [Pair.of_layers(0, 1)], {}
    for layer, n_features in ((0, 30), (1, 24)):
        saes[SaeKey("default", layer)] = random_sae(layer, n_features=n_features, layer=layer)
    for k, message in ((24, None), (25, "arms.cosine: matcher.k=25 is more than the 24 features")):
        settings = ["arms=[folded,cosine]", f"arms.cosine.matcher.k={k}"]
        experiment, _ = build([*tiny_overrides(tiny), *settings])
        if message is None:
            assert find_refusals(experiment, pairs, SaeShelf.of(saes)) == ()
            continue
        with pytest.raises(InputError, match=message) as error:
            find_refusals(experiment, pairs, SaeShelf.of(saes))
        assert str(error.value).endswith("choose at most 24 (layer 1)")

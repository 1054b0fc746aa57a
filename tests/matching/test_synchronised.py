"""Whole-model matches against brute force, on planted noise, in the store and in a run's pairs."""

import logging
from dataclasses import dataclass, replace
from itertools import pairwise, permutations, product

import pytest
import torch
from torch.nn.functional import normalize

from conftest import random_sae
from matches import partners
from saematch.core.claims import sharing
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.match_tables import exact_arms
from saematch.matching.arm import Arm
from saematch.matching.matchers import ChanceLevel, Optimal, Scipy, TopK
from saematch.matching.matches import match_pairs, matching_refusals
from saematch.matching.objectives.decoder_cosine import DecoderCosine
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.written_share import WrittenShare
from saematch.matching.store import MatchStore
from saematch.matching.synchronised import Synchronise, Synchronised
from saematch.sae.suites import SaeFacts, SaeShelf

ARM = Arm("decoder_norm", DecoderCosine(), Optimal(), synchronise=Synchronise())


@dataclass(frozen=True)
class ReadWrite:
    """An asymmetric objective: what a source feature writes and a target feature reads."""

    def factors(self, source, target):
        return Factors(source.W_dec, target.W_enc.T)

    def refusal(self, source, target):
        return None


def noisy_layers(n_layers, n, size, noise, seed=0, born=0):
    """Return shuffled noisy copies of common vectors, and each copy's common vector.

    The last ``born`` features are drawn anew in each layer.
    """
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(n, size, generator=g)
    layers, orders = [], []
    for _ in range(n_layers):
        order = torch.randperm(n, generator=g)
        vectors = common + noise * torch.randn(n, size, generator=g)
        vectors[n - born :] = torch.randn(born, size, generator=g)
        layers.append(normalize(vectors[order], dim=1))
        orders.append(order)
    return layers, orders


def saes_of(layers):
    """Return SAEs with these decoder vectors."""
    saes = {}
    for layer, vectors in enumerate(layers):
        sae = random_sae(layer, vectors.shape[1], len(vectors), layer=layer)
        saes[SaeKey("default", layer)] = replace(sae, W_dec=vectors)
    return saes


def solved(settings, factors, matcher=None):
    """Return universe features and confidences of layers with these factors."""
    matcher = matcher or Optimal(tolerance=0.0)

    def direct(source, target):
        return matcher(Factors(factors[source].X_A, factors[target].X_B))

    return settings([lambda f=f: f for f in factors], direct, matcher)


def total(classes, factors, decay):
    """Return the objective from its definition, in float64."""
    orders = [of_layer.argsort() for of_layer in classes]
    value = 0.0
    for a in range(len(factors)):
        for b in range(a + 1, len(factors)):
            X_A, X_B = factors[a].X_A[orders[a]].double(), factors[b].X_B[orders[b]].double()
            value += decay ** (b - a - 1) * float((X_A * X_B).sum())
    return value


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_of_one_layer_is_better_and_the_best_is_found_on_little_noise(
    decay, asymmetric, seed
):
    layers, _ = noisy_layers(3, 4, 6, 0.3, seed)
    targets = noisy_layers(3, 4, 6, 0.3, seed)[0] if not asymmetric else [x.flip(1) for x in layers]
    factors = [Factors(*sides) for sides in zip(layers, targets, strict=True)]
    classes, _ = solved(Synchronise(decay=decay), factors)
    value = total(classes, factors, decay)
    orders = [torch.tensor(order) for order in permutations(range(4))]
    for layer, order in product(range(3), orders):
        changed = classes.clone()
        changed[layer] = order
        assert total(changed, factors, decay) <= value + 1e-5
    if not asymmetric:
        first = torch.arange(4)
        best = max(total([first, *others], factors, decay) for others in product(orders, repeat=2))
        assert value == pytest.approx(best, abs=1e-5)


def test_the_objective_never_falls(caplog):
    layers, _ = noisy_layers(5, 30, 12, 1.5)
    factors = [Factors(x, x) for x in layers]
    with caplog.at_level(logging.WARNING):
        searches = [solved(Synchronise(max_sweeps=n), factors) for n in (1, 2, 3, 20)]
    values = [total(classes, factors, 0.5) for classes, _ in searches]
    assert min(b - a for a, b in pairwise(values)) >= -1e-4 and values[-1] > values[0]
    assert "increase max_sweeps" in caplog.text


def truth(orders, source, target):
    """Return the partner of each source feature."""
    return orders[target].argsort()[orders[source]]


def test_synchronising_recovers_what_single_matches_miss(tmp_path):
    layers, orders = noisy_layers(4, 200, 32, 0.8)
    pairs = tuple(Pair.of_layers(a, b) for a in range(4) for b in range(a + 1, 4))
    arms = {
        "direct": replace(ARM, synchronise=None),
        "composed": replace(ARM, synchronise=None, compose=True),
        "synchronised": replace(ARM, synchronise=Synchronise(decay=1.0)),
    }
    matches = match_pairs(saes_of(layers), pairs, arms, MatchStore(tmp_path), tmp_path / "run")
    errors = dict.fromkeys(arms, 0)
    right, wrong = [], []
    for arm, pair in product(arms, pairs):
        match = matches.by_arm[arm][pair]
        is_true = partners(match) == truth(orders, pair.source.layer, pair.target.layer)
        errors[arm] += int((~is_true).sum())
        if arm == "synchronised":
            right.append(match.scores[is_true])
            wrong.append(match.scores[~is_true])
    assert errors["direct"] > 50
    assert errors["synchronised"] < min(errors["direct"], errors["composed"]) / 4
    assert torch.cat(right).mean() > torch.cat(wrong).mean() + 0.1


def test_matches_agree_over_cycles(tmp_path):
    saes = saes_of(noisy_layers(4, 30, 8, 1.0)[0])
    pairs = tuple(Pair.of_layers(a, b) for a in range(4) for b in range(4) if a != b)
    arms = {"synchronised": ARM}
    matches = match_pairs(saes, pairs, arms, MatchStore(tmp_path), tmp_path / "run")
    of = {(p.source.layer, p.target.layer): m for p, m in matches.by_arm["synchronised"].items()}
    for a, b, c in permutations(range(4), 3):
        assert of[a, b].compose(of[b, c]).hash == of[a, c].hash
        assert of[a, b].inverse().hash == of[b, a].hash
        assert of[a, b].is_permutation


def test_newborn_features_are_not_in_the_universe():
    layers, orders = noisy_layers(4, 60, 64, 0.5, born=20)
    factors = [Factors(x, x) for x in layers]
    classes, _ = solved(Synchronise(level=0.6), factors)
    for of_layer, order in zip(classes, orders, strict=True):
        assert torch.equal(of_layer >= 0, order < 40)
    keys = tuple(SaeKey("default", layer) for layer in range(4))
    match = Synchronised(keys, classes, torch.ones(classes.shape).double()).match(Pair(*keys[1:3]))
    persists = orders[1] < 40
    expected = torch.where(persists, truth(orders, 1, 2), -1)
    assert torch.equal(partners(match), expected)


def test_the_confidence_by_hand():
    identity, swapped = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2])
    direct = {(0, 1): identity, (1, 2): identity, (2, 3): identity, (0, 2): swapped,
              (1, 3): identity}  # fmt: skip
    factors = Factors(torch.eye(3), torch.eye(3))
    _, confidence = Synchronise()(
        [lambda: factors] * 4, lambda a, b: Match.from_columns(direct[a, b], 3), Optimal()
    )
    expected = torch.tensor([[1 / 2, 1 / 2, 1], [1, 1, 1], [2 / 3, 2 / 3, 1], [1, 1, 1]]).double()
    torch.testing.assert_close(confidence, expected)
    keys = tuple(SaeKey("default", layer) for layer in range(4))
    match = Synchronised(keys, torch.arange(3).repeat(4, 1), confidence).match(Pair(*keys[:2]))
    assert match.scores.tolist() == [0.75, 0.75, 1.0]


def test_a_whole_model_match_is_solved_once_in_all_runs(tmp_path):
    saes = saes_of(noisy_layers(3, 20, 8, 0.5)[0])
    pairs = tuple(Pair.of_layers(a, b) for a, b in ((0, 1), (0, 2)))
    shelf = SaeShelf.of(saes)
    stores = [MatchStore(tmp_path / "cache") for _ in range(2)]
    first, again = (
        match_pairs(shelf, pairs, {"a": ARM}, store, tmp_path / "run") for store in stores
    )
    assert first.hashes == again.hashes
    assert (stores[0].counts["solved"], stores[1].counts["solved"]) == (3, 0)
    files = {path.stem for path in (tmp_path / "cache").iterdir()}
    others = [
        replace(ARM, fold="none"),
        replace(ARM, synchronise=Synchronise(level=0.2)),
        replace(ARM, matcher=Scipy()),
    ]
    for arm in others:
        match_pairs(shelf, pairs[:1], {"a": arm}, stores[1], tmp_path / "run")
        now = {path.stem for path in (tmp_path / "cache").iterdir()}
        assert now > files
        files = now
    fewer = shelf.only(list(saes)[:2])
    match_pairs(fewer, pairs[:1], {"a": ARM}, stores[1], tmp_path / "run")
    assert {path.stem for path in (tmp_path / "cache").iterdir()} > files, (
        "the layers are part of the key"
    )
    timed = replace(ARM, matcher=Optimal(time_limit=60.0))
    match_pairs(shelf, pairs, {"a": timed}, MatchStore(tmp_path / "none"), tmp_path / "run")
    assert not list((tmp_path / "none").glob("*"))


def test_processes_share_the_direct_matches(tmp_path):
    saes = saes_of(noisy_layers(3, 20, 8, 0.5)[0])
    pairs = (Pair.of_layers(0, 1),)
    store = MatchStore(tmp_path / "cache")
    with sharing(tmp_path / "locks"):
        match_pairs(saes, pairs, {"a": ARM}, store, tmp_path / "run")
    assert store.counts["solved"] == 3, "each pair of layers is solved once"


def test_pairs_that_cannot_be_synchronised_are_refused():
    keys = [SaeKey("default", 0), SaeKey("default", 1), SaeKey("wide", 0)]
    facts = {key: SaeFacts.of(random_sae(n, layer=key.layer)) for n, key in enumerate(keys)}
    across, within = Pair(keys[0], keys[2]), Pair(keys[0], keys[1])
    arms = {"direct": replace(ARM, synchronise=None), "synchronised": ARM}
    refused = matching_refusals(facts, [within, across], arms)
    assert [(r.pair, r.arm) for r in refused] == [(across, "synchronised")]
    assert "a synchronised match needs two layers of one suite" in refused[0].reason
    facts[keys[1]] = SaeFacts.of(random_sae(1, n_features=30, layer=1))
    (refusal,) = matching_refusals(facts, [within], arms)
    assert "layer 0 has 24 features and layer 1 has 30" in refusal.reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compose": True}, "compose and synchronise"),
        ({"objective": WrittenShare(), "matcher": TopK()}, "WrittenShare"),
        ({"matcher": TopK()}, "TopK"),
        ({"matcher": Optimal(unmatched=ChanceLevel())}, "without unmatched"),
    ],
)
def test_settings_that_cannot_be_synchronised_are_refused(settings, words):
    with pytest.raises(InputError) as error:
        replace(ARM, **settings)
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"synchronise.level=1.5"):
        Synchronise(level=1.5)


def test_the_tables_compare_it_with_the_direct_match():
    arms = {"direct": replace(ARM, synchronise=None), "synchronised": ARM}
    assert exact_arms(arms) == {"synchronised": "direct"}

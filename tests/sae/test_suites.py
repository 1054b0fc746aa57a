"""Memory holds a few SAEs at a time, and no result depends on how many."""

import json
import weakref
from dataclasses import dataclass, replace

import pytest
import torch

from conftest import N_FEATURES, random_sae
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import matching_refusals
from saematch.matching.objectives.parts import Parts
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import GIB, SaeFacts, SaeShelf

SIZE = 4 * (2 * 16 * 24 + 2 * 24 + 16)
"""Bytes of one SAE of ``random_sae``."""


@dataclass
class Counting:
    """Synthetic SAEs by layer, with counts of loads and of SAEs in memory."""

    shared: tuple = ()
    loads: int = 0
    alive: int = 0
    most: int = 0

    name = "counting"

    def layers(self):
        return list(range(5))

    def load(self, layer):
        layer = 0 if layer in self.shared else layer
        return self.count(random_sae(layer, layer=layer))

    def count(self, sae):
        self.loads += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(sae.W_enc, self.gone)
        return sae

    def gone(self):
        self.alive -= 1

    def truth(self, earlier, later):
        return None

    def offers(self, layer):
        return []


def shelf_of(saes, n, layers=range(5)):
    return SaeShelf.load(
        [SaeKey("default", layer) for layer in layers], {"default": saes}, n * SIZE / GIB
    )


@pytest.mark.parametrize(("n", "held"), [(0.1, 2), (2.0, 2), (3.5, 3), (5.0, 5)])
def test_as_many_are_held_as_fit_but_at_least_two(n, held):
    saes = Counting()
    shelf = shelf_of(saes, n)
    assert (saes.loads, saes.alive, saes.most) == (5, held, held)
    for layer in (0, 1, 2, 1, 2, 3):
        assert shelf[SaeKey("default", layer)].origin.layer == layer
        assert saes.alive == held
    assert saes.most == held
    assert saes.loads == 5 + (0 if held == 5 else 4)


def test_the_least_recently_used_goes_first():
    saes = Counting()
    shelf = shelf_of(saes, 3)
    for layer in (0, 1, 2, 0, 3):  # 1 makes room
        _ = shelf[SaeKey("default", layer)]
    saes.loads = 0
    for layer in (0, 2, 3):
        _ = shelf[SaeKey("default", layer)]
    assert saes.loads == 0
    _ = shelf[SaeKey("default", 1)]
    assert saes.loads == 1


def test_facts_need_no_weights():
    saes = Counting()
    shelf = shelf_of(saes, 2)
    saes.loads = 0
    for key, sae_facts in shelf.facts.items():
        sae = random_sae(key.layer, layer=key.layer)
        assert replace(sae_facts, code="") == SaeFacts.of(sae)
        assert (sae_facts.origin, sae_facts.d_model, sae_facts.n_features) == (sae.origin, 16, 24)
        assert sae_facts.n_bytes == SIZE
        assert sae_facts.thresholds["threshold_mean"] == pytest.approx(sae.threshold.mean().item())
    assert len(shelf) == 5
    assert SaeKey("default", 0) in shelf
    assert SaeKey("default", 7) not in shelf
    assert saes.loads == 0
    sae = random_sae(0)
    bad = replace(sae, threshold=torch.zeros(N_FEATURES))
    assert set(SaeFacts.of(bad).unfoldable) == {"threshold"}
    assert "24 of 24 thresholds are zero" in SaeFacts.of(bad).unfoldable["threshold"]


def test_saes_of_one_origin_are_held_once():
    saes = Counting(shared=(1, 2))
    shelf = shelf_of(saes, 9)
    assert saes.alive == 3, "layers 1 and 2 have that of layer 0"
    first, second, third = (shelf[SaeKey("default", layer)] for layer in range(3))
    assert first is second is third
    keys = [{SaeKey("default", layer)} for layer in range(5)]
    small = shelf_of(saes, 2)
    assert small.parts(keys) == [set().union(*keys[:4]), keys[4]]


def test_parts_fit_and_hold_each_set():
    keys = [SaeKey("default", layer) for layer in range(5)]
    pairs = [set(keys[n : n + 2]) for n in range(4)]
    assert shelf_of(Counting(), 0.1).parts(pairs) == pairs
    assert shelf_of(Counting(), 3).parts(pairs) == [set(keys[:3]), set(keys[2:])]
    assert shelf_of(Counting(), 5).parts(pairs) == [set(keys)]
    assert shelf_of(Counting(), 0.1).parts([{keys[0]}, {keys[1]}]) == [{keys[0]}, {keys[1]}]


def test_an_sae_that_changed_on_the_way_is_refused():
    saes = Counting()
    shelf = shelf_of(saes, 2)
    saes.shared = (1,)
    with pytest.raises(ValueError, match="random/1 changed while the run used it"):
        _ = shelf[SaeKey("default", 1)]


def test_no_result_depends_on_how_many_are_held(cli, tmp_path, monkeypatch):
    """With room for two, memory never holds three, and a sweep loads each SAE once."""
    counting = {}
    real = SaeFolders.load

    def counted(folders, layer):
        return now.count(real(folders, layer))

    monkeypatch.setattr(SaeFolders, "load", counted)
    for run, memory in (("few", "1.0e-6"), ("all", "4.0")):
        now = counting[run] = Counting()
        message, _ = cli(
            f"run_id={run}", f"sae_memory={memory}", "logger=none", "cache=null",
            "evaluations=[co_activation,skipping,features,paths,explain]", "arms=[folded,random]",
            "arms.folded.quantiles=[0.5]", "layers=[0,1,2]", "figures=[]",
        )  # fmt: skip
        assert message is None
    few, whole = (
        json.loads((tmp_path / f"outputs/match/{run}/results.json").read_text())
        for run in ("few", "all")
    )
    assert few["tables"] == whole["tables"]
    assert few["metrics"] == whole["metrics"]
    assert (counting["all"].loads, counting["all"].most) == (3, 3)
    assert counting["few"].most == 2
    # facts, contexts, match, its rows, errors of quantiles, evaluation, two tables, paths
    assert counting["few"].loads <= 9 * 3
    sums = list((tmp_path / "outputs/match/few/cache/sums").glob("*.safetensors"))
    assert len(sums) == 2 * 2 * 3, "two recorders, two parts of the pass, three batches"


class TwoSites(Counting):
    """Layer 1 reads another place than layer 0."""

    def load(self, layer):
        sae = random_sae(layer, layer=layer)
        site = ("resid_post", "mlp_out")[layer]
        return replace(sae, origin=replace(sae.origin, site=site))


def test_saes_of_two_sites_are_not_matched():
    source = TwoSites()
    facts = {SaeKey("default", n): SaeFacts.of(source.load(n)) for n in (0, 1)}
    pair = Pair.of_layers(0, 1)
    (refusal,) = matching_refusals(facts, [pair], {"a": Arm("threshold", Parts(), Random(0))})
    assert (refusal.pair, refusal.evaluation, refusal.arm) == (pair, "matching", None)
    assert "places of the model (source: resid_post, target: mlp_out)" in refusal.reason


def test_the_settings_of_a_source_of_another_package_tell_its_saes_apart(tiny):
    @dataclass(frozen=True)
    class Scaled(SaeFolders):
        scale: float = 1.0

        def load(self, layer):
            sae = super().load(layer)
            return replace(sae, W_dec=sae.W_dec * self.scale)

    def identity(source):
        return SaeShelf.load([SaeKey("s", 1)], {"s": source}, 1.0).facts[SaeKey("s", 1)].identity

    path = str(tiny / "saes/layer_{layer}")
    first, second, again = (identity(Scaled(path, scale=scale)) for scale in (1.0, 2.0, 1.0))
    assert first == again != second
    elsewhere = replace(SaeFolders(path), path=str(tiny / "saes/../saes/layer_{layer}"))
    assert identity(elsewhere).split()[-1] == identity(SaeFolders(path)).split()[-1]


class Louder(Counting):
    """SAEs of other decoder norms, under the names of the first ones."""

    def load(self, layer):
        sae = super().load(layer)
        return replace(sae, W_dec=2 * sae.W_dec)


def test_two_saes_of_one_origin_are_refused():
    keys = [SaeKey("default", 1), SaeKey("loud", 1)]
    with pytest.raises(InputError, match="layer 1 of loud has the origin of another SAE"):
        SaeShelf.load(keys, {"default": Counting(), "loud": Louder()}, 1.0)
    assert len(SaeShelf.load(keys, {"default": Counting(), "loud": Counting()}, 1.0)) == 2

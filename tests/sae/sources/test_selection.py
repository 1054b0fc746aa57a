"""Choice of the SAEs of a release that form a suite."""

from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch

from saematch.core.pairs import DEFAULT
from saematch.sae.sources.selection import (
    AsReleased,
    EverySparsity,
    SimilarL0,
    least_change,
    zoo_by_layer,
)
from saematch.sae.sources.source import SaeOffer, ZooSaes


@dataclass(frozen=True)
class Release:
    """Synthetic source with offers of given mean L0 for each layer."""

    l0s: tuple[tuple[float, ...], ...]
    pick: int = 0
    name: str = "release"

    def layers(self):
        return list(range(len(self.l0s)))

    def load(self, layer):
        raise NotImplementedError

    def truth(self, earlier, later):
        return None

    def offers(self, layer):
        return [SaeOffer(l0, Release(self.l0s, n)) for n, l0 in enumerate(self.l0s[layer])]


def change(values, chain):
    return sum(abs(a - b) for a, b in pairwise(v[i] for v, i in zip(values, chain, strict=True)))


def test_least_change_by_hand():
    # Gemma Scope's ladders are like this: 70 to 80 is the only way that never jumps
    assert least_change([[18.0, 70.0, 140.0], [80.0, 200.0], [40.0, 82.0]]) == [1, 0, 1]
    assert least_change([[5.0]]) == [0]
    assert least_change([[1.0, 1.0], [1.0, 1.0]]) == [0, 0], "of equal sums the first"


def test_least_change_equals_trying_every_chain():
    g = torch.Generator().manual_seed(0)
    for _ in range(30):
        sizes = torch.randint(1, 5, (5,), generator=g).tolist()
        values = [(100 * torch.rand(n, generator=g)).tolist() for n in sizes]
        best = min(change(values, chain) for chain in product(*map(range, sizes)))
        assert change(values, least_change(values)) == pytest.approx(best)


def test_similar_l0_takes_the_chain_and_keeps_the_default():
    source = Release(((18.0, 70.0, 140.0), (80.0, 200.0), (40.0, 82.0)))
    sets = SimilarL0()(source, [0, 1, 2])
    assert list(sets) == [DEFAULT, "similar"]
    assert sets[DEFAULT] is source
    assert [sets["similar"].by_layer[layer].pick for layer in range(3)] == [1, 0, 1]
    assert SimilarL0(max_l0=50.0).min_l0 == 0
    with pytest.raises(ValueError, match="layer 1 of release has no SAE with a mean L0"):
        SimilarL0(max_l0=50.0)(source, [0, 1, 2])


def test_every_sparsity_joins_the_nearest_by_ratio():
    sets = EverySparsity()(Release(((10.0, 20.0, 40.0), (19.0, 45.0))), [0, 1])
    picks = {name: [s.by_layer[layer].pick for layer in (0, 1)] for name, s in sets.items()}
    assert picks == {"l0_19": [1, 0], "l0_45": [2, 1]}


def test_the_zoo_offers_its_sparsities_and_a_folder_one():
    source = ZooSaes("independent", 1024, 20)
    offers = source.offers(3)
    assert [offer.source.sparsity for offer in offers] == [10, 20, 40]
    assert all(abs(o.mean_l0 / o.source.sparsity - 1) < 0.1 for o in offers)
    sets = EverySparsity()(source, [3, 4])
    assert list(sets) == ["l0_10", "l0_20", "l0_40"]
    member = sets["l0_10"].load(3)
    assert member.origin == ZooSaes("independent", 1024, 10).load(3).origin
    assert AsReleased()(source, [3])[DEFAULT] is source
    with pytest.raises(ValueError, match="has one SAE per layer"):
        EverySparsity()(ZooSaes("chain", 1024, 20), [3, 4])


def test_uneven_sets_of_the_zoo_become_even():
    source = zoo_by_layer("independent", 1024, [40, 20, 40])
    assert source.layers() == [0, 1, 2]
    assert source.load(0).origin == ZooSaes("independent", 1024, 40).load(0).origin
    similar = SimilarL0(min_l0=15.0)(source, [0, 1, 2])["similar"]
    assert {member.sparsity for member in similar.by_layer.values()} in ({20}, {40})

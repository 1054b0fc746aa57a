"""Stored matches are found by all that determines them, and by nothing else."""

from dataclasses import replace

import pytest
import torch

from conftest import random_sae
from saematch.core.code import code_of
from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.matching.arm import Arm
from saematch.matching.matchers import ChanceLevel, Identity, Optimal, Random
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore, match_key
from saematch.sae.suites import SaeShelf

A, B, C = (SaeKey("default", layer) for layer in range(3))
SAES = SaeShelf.of({key: random_sae(key.layer, layer=key.layer) for key in (A, B, C)})
OF_A, OF_B, OF_C = (SAES.facts[key] for key in (A, B, C))
ARM = Arm("threshold", Parts(), Optimal())


def test_a_match_is_solved_once_in_all_runs(tmp_path):
    first = MatchStore(tmp_path)
    match = first.match(SAES, A, B, ARM)
    assert first.match(SAES, A, B, ARM) is match
    assert dict(first.counts) == {"solved": 1, "reused": 1}
    second = MatchStore(tmp_path)
    again = second.match(SAES, A, B, ARM)
    assert dict(second.counts) == {"read": 1}
    assert torch.equal(match.columns, again.columns)
    assert match.certificate == again.certificate
    assert "2 matches: 1 solved, 0 found in" in first.summary()
    assert [path.stem for path in tmp_path.iterdir()] == [match_key(OF_A, OF_B, ARM)]


@pytest.mark.parametrize(
    ("source", "target", "arm"),
    [
        (OF_C, OF_B, ARM),
        (OF_A, OF_C, ARM),
        (replace(OF_A, origin=replace(OF_A.origin, revision="another file")), OF_B, ARM),
        (replace(OF_A, code="another loader"), OF_B, ARM),
        (OF_A, OF_B, replace(ARM, fold="decoder_norm")),
        (OF_A, OF_B, replace(ARM, objective=Parts(W_enc=0.5))),
        (OF_A, OF_B, replace(ARM, matcher=Optimal(tolerance=0.0))),
        (OF_A, OF_B, replace(ARM, matcher=Optimal(unmatched=ChanceLevel()))),
        (OF_A, OF_B, replace(ARM, matcher=Random(0))),
    ],
)
def test_everything_that_determines_a_match_is_in_its_key(source, target, arm):
    assert match_key(source, target, arm) != match_key(OF_A, OF_B, ARM)


def test_settings_that_do_not_change_a_match_are_not_in_its_key(monkeypatch):
    decoded = replace(ARM, decode=("permute_raw",), quantiles=(0.5,))
    assert match_key(OF_A, OF_B, decoded) == match_key(OF_A, OF_B, ARM)
    elsewhere = replace(ARM, matcher=Optimal(memory_gib=2.0, device="cpu"))
    assert match_key(OF_A, OF_B, elsewhere) == match_key(OF_A, OF_B, ARM)
    before = match_key(OF_A, OF_B, ARM)
    monkeypatch.setattr("saematch.matching.store.code_of", lambda _: "other code")
    assert match_key(OF_A, OF_B, ARM) != before


def test_a_match_under_a_limit_of_time_is_not_shared(tmp_path):
    limited = replace(ARM, matcher=Optimal(time_limit=60.0))
    MatchStore(tmp_path).match(SAES, A, B, limited)
    assert not list(tmp_path.iterdir())


def test_a_match_that_was_read_has_the_cost_of_its_solution(tmp_path):
    first, second = MatchStore(tmp_path), MatchStore(tmp_path)
    first.match(SAES, A, B, ARM)
    cost = first.cost(SAES, [A, B], ARM)
    assert cost.seconds > 0
    second.match(SAES, A, B, ARM)
    assert second.cost(SAES, [A, B], ARM) == cost
    second.match(SAES, B, C, ARM)
    both = second.cost(SAES, [A, B, C], ARM)
    assert both == cost.then(second.cost(SAES, [B, C], ARM))


def test_a_file_without_a_cost_has_none(tmp_path):
    match = ARM.match(SAES[A], SAES[B])
    match.save(tmp_path / f"{match_key(OF_A, OF_B, ARM)}.safetensors", keep=True)
    store = MatchStore(tmp_path)
    store.match(SAES, A, B, ARM)
    assert dict(store.counts) == {"read": 1}
    assert store.cost(SAES, [A, B], ARM) is None


def test_a_chain_is_the_composition_of_its_steps(tmp_path):
    store = MatchStore(tmp_path)
    chained = store.chain(SAES, [A, B, C], ARM)
    steps = [ARM.match(SAES[A], SAES[B]), ARM.match(SAES[B], SAES[C])]
    assert torch.equal(chained.columns, steps[0].compose(steps[1]).columns)
    assert dict(store.counts) == {"solved": 2}
    single = store.chain(SAES, [A, B], ARM)
    assert single.certificate is not None, "of one step it is the match itself"


class Plain:
    """A matcher without a text of its settings."""

    one_partner = True

    def __init__(self, shift, inner=None):
        self.shift = shift
        self.inner = inner

    def __call__(self, factors):
        n = len(factors.X_A)
        return Match.from_columns((torch.arange(n) + self.shift) % n, n)


def test_the_key_has_the_settings_of_a_matcher_that_is_no_dataclass(tmp_path):
    arms = [replace(ARM, matcher=Plain(shift)) for shift in (1, 2, 1)]
    keys = [match_key(OF_A, OF_B, arm) for arm in arms]
    assert keys[0] == keys[2] != keys[1]
    assert code_of(arms[0]) != code_of(replace(ARM, matcher=Identity()))
    stores = MatchStore(tmp_path), MatchStore(tmp_path)
    assert [stores[n].match(SAES, A, B, arms[0]).columns[0] for n in (0, 1)] == [1, 1]
    assert dict(stores[1].counts) == {"read": 1}


def test_a_match_whose_settings_have_no_text_is_not_shared(tmp_path):
    arm = replace(ARM, matcher=Plain(1, inner=object()))
    for _ in range(2):
        store = MatchStore(tmp_path)
        store.match(SAES, A, B, arm)
        assert dict(store.counts) == {"solved": 1}
    assert not list(tmp_path.iterdir())

"""Matchers that an arm refuses."""

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from conftest import random_sae
from matches import permutation, soft
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.explain.tf_idf import TfIdf
from saematch.matching.arm import Arm
from saematch.matching.matchers import Greedy, Identity, MutualNearest, Optimal, Random, Scipy, TopK
from saematch.matching.objectives.explanation_cosine import ExplanationCosine
from saematch.matching.objectives.parts import Parts
from saematch.matching.objectives.pearson import Pearson
from saematch.sae.folding import fold
from saematch.sae.sources.source import ZooSaes


@dataclass(frozen=True)
class Returning:
    """A matcher that returns what it is given."""

    one_partner: ClassVar[bool] = True
    match: Any

    def __call__(self, factors):
        return self.match() if callable(self.match) else self.match


class ReturningSeveral(Returning):
    one_partner: ClassVar[bool] = False


def with_nan():
    columns = torch.arange(24)
    return Match(columns, columns, torch.full((24,), torch.nan).double(), 24, 24)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"rows": [0]}, "returned dict, not a Match"),
        (None, "returned NoneType, not a Match"),
        (
            permutation(0, 23),
            "returned a match of 23 to 23 features for SAEs of 24 and 24",
        ),
        (soft(0, 24, 25), "returned a match of 24 to 25 features for SAEs of 24 and 24 features"),
        (with_nan, "made no valid match: 24 weights of a match are NaN or infinite"),
        (soft(0), "gave some features several partners: return one, or declare"),
    ],
)
def test_a_match_that_breaks_the_contract_is_refused_with_the_matcher_s_name(match, words):
    arm = Arm("threshold", Parts(), Returning(match))
    with pytest.raises(InputError, match=f"the matcher .*test_arm.Returning {words}"):
        arm.match(random_sae(0), random_sae(1))


def test_several_partners_are_allowed_where_they_are_declared():
    arm = Arm("threshold", Parts(), ReturningSeveral(soft(0)))
    assert arm.match(random_sae(0), random_sae(1)).hash == soft(0).hash
    checked = replace(arm, matcher=ReturningSeveral(permutation(0)))
    assert checked.match(random_sae(0), random_sae(1)).is_permutation


@pytest.mark.parametrize("matcher", [Greedy, Identity, MutualNearest, Optimal, Random, Scipy])
def test_the_matchers_of_the_package_give_one_partner(matcher):
    arm = Arm("threshold", Parts(), matcher())
    wide, narrow = random_sae(0, n_features=30), random_sae(1)
    for source, target in ((wide, narrow), (narrow, wide), (narrow, narrow)):
        assert arm.match(source, target).one_partner
    assert matcher.one_partner


def test_a_composition_that_keeps_nothing_is_refused():
    with pytest.raises(InputError, match=r"composed_entries=0"):
        Arm("threshold", Parts(), Identity(), composed_entries=0)


def test_a_matcher_that_does_not_declare_its_partners_is_refused():
    def matcher(factors):
        return permutation(0)

    with pytest.raises(InputError, match="must be of class Matcher, which has one_partner"):
        Arm("threshold", Parts(), matcher)


def test_entries_of_weight_0_are_left_out():
    weights = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    columns = torch.tensor([3, 4, 5])
    given = Match(torch.tensor([0, 0, 1]), columns, weights, 24, 24)
    arm = Arm("threshold", Parts(), ReturningSeveral(given))
    match = arm.match(random_sae(0), random_sae(1))
    assert (match.columns.tolist(), match.weights.tolist()) == ([3, 5], [1.0, 0.5])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": Pearson()}, "Pearson that reads weights and texts"),
        ({"objective": ExplanationCosine(TfIdf())}, "ExplanationCosine that reads explanations"),
        ({"objective": Parts(), "transported": True}, "Parts that reads weights and texts"),
    ],
)
def test_an_arm_that_reads_more_than_weights_needs_its_similarity(settings, words):
    arm = Arm("decoder_norm", matcher=TopK(3), **settings)
    with pytest.raises(InputError, match=words):
        arm.match(random_sae(0), random_sae(1))


def test_html_shows_the_settings_of_an_arm():
    html = Arm(fold="none", matcher=TopK(k=3))._repr_html_()
    assert "<p>Arm(fold=&#x27;none&#x27;, matcher=TopK(k=3))</p>" in html
    cells = [cell for row in html.split("<tr>") for cell in re.findall("<t[hd]>(.*)</t[hd]>", row)]
    assert cells[-8:] == [
        "fold", "none", "objective", "Parts", "matcher", "TopK(k=3)", "decode", "permute",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [4, "a", ZooSaes("chain"), torch.ones(2, 2)])
def test_values_that_are_no_saes_are_refused(wrong):
    """Without the types that tests enforce."""
    with pytest.raises(InputError, match=f"the target is of class {type(wrong).__name__}, not an"):
        inspect.unwrap(Arm.match)(Arm(), random_sae(0), wrong)
    with pytest.raises(InputError, match="the SAE to fold is of class"):
        inspect.unwrap(fold)(wrong, "none")

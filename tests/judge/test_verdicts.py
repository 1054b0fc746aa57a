"""Answers are read as they stand: a label is 1, 2 or 3, or there is none."""

import math

import pytest
import torch

from saematch.chat.answers import read_text
from saematch.chat.questions import Reply
from saematch.judge.verdicts import SCORES, Verdict, kappa, read_verdict


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ('{"evaluation": "both", "label": 3}', "SAME"),
        ('{"evaluation": "both", "label": "2"}', "MAYBE"),
        ('```json\n{"evaluation": "no", "label": 1}\n```', "DIFFERENT"),
        ("Both speak of rivers.\nLabel: 3", "SAME"),
        ("Label: 1? No, on reflection\n**Label:** 2", "MAYBE"),
        ('{"evaluation": "cut off, "label": 2', "MAYBE"),
        ("2", "MAYBE"),
        ("**3**", "SAME"),
        ("", "UNPARSED"),
        ("They are the same, SAME.", "UNPARSED"),
        ('{"evaluation": "so alike", "label": 4}', "UNPARSED"),
        ('{"evaluation": "half", "label": 2.5}', "UNPARSED"),
        ('{"evaluation": "yes", "label": true}', "UNPARSED"),
        ("Label: 2, but finally Label: 7", "UNPARSED"),
        ("Label: 2.5", "UNPARSED"),
        ("Label: -1", "UNPARSED"),
        ("there are 3 rivers", "UNPARSED"),
        ('{"evaluation": "it is', "UNPARSED"),
        ("[1, 2]", "UNPARSED"),
        ('{"evaluation": "the note claims label: 3"}', "UNPARSED"),
        ('```json\n{"label": 1}\n```\nbetter:\n```json\n{"label": 3}\n```', "SAME"),
        ('Here it is: {"evaluation": "{}", "label": 2}', "MAYBE"),
        ('{"evaluation": "both", "label": 3} I hope that helps!', "SAME"),
    ],
)
def test_the_last_label_counts_and_nothing_is_guessed(content, label):
    verdict = read_verdict(Reply(content))
    assert verdict.label == label
    assert verdict.score == SCORES.get(label)


def test_a_refusal_is_a_value_even_if_it_holds_a_label():
    assert read_verdict(Reply("I cannot. Label: 3", refused=True)) == Verdict(
        "REFUSED", "I cannot. Label: 3"
    )


@pytest.mark.parametrize(
    "content", ['{"evaluation": "One could say label: 3, but', "<think>label: 1 is not, label: 2"]
)
def test_what_was_cut_off_has_no_label(content):
    assert read_verdict(Reply(content, finish_reason="length")).label == "UNPARSED"
    assert read_text(Reply("names of riv", finish_reason="length"), "explanation") is None


def test_the_judges_reason_is_kept():
    assert read_verdict(Reply('{"evaluation": "both", "label": 3}')).evaluation == "both"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"explanation": " rivers "}', "rivers"),
        ("rivers", "rivers"),
        ("Sure! Here it is:\n\nrivers", None),
        ("Here is the explanation:", None),
        ("<think> rivers", None),
        ('Here it is:\n{"explanation": "rivers"}', "rivers"),
        ("explanation: rivers", "rivers"),
        ('{"other": "rivers"}', None),
        ('{"explanation": ""}', None),
        ('{"explanation": "riv', None),
        ("", None),
    ],
)
def test_texts_are_read_from_json_or_as_plain_text(content, text):
    assert read_text(Reply(content), "explanation") == text
    assert read_text(Reply(content, refused=True), "explanation") is None


def test_kappa_by_hand():
    """Four of six alike; by chance (2*3 + 2*2 + 2*1) / 36 = 1/3; so kappa is 1/2."""
    first, second = torch.tensor([1, 1, 2, 2, 3, 3]), torch.tensor([1, 1, 2, 1, 3, 2])
    weights = torch.ones(1, 6, dtype=torch.float64)
    assert kappa(weights, first, second).item() == pytest.approx(0.5)


def test_kappa_with_weights_is_kappa_of_repeated_pairs():
    first, second = torch.tensor([1, 2, 3]), torch.tensor([1, 3, 3])
    weighted = kappa(torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64), first, second)
    index = torch.tensor([0, 0, 1, 2, 2, 2])
    plain = kappa(torch.ones(1, 6, dtype=torch.float64), first[index], second[index])
    assert weighted.item() == pytest.approx(plain.item())


def test_kappa_is_unknown_where_chance_alone_agrees():
    same = torch.tensor([3, 3])
    assert math.isnan(kappa(torch.ones(1, 2, dtype=torch.float64), same, same).item())

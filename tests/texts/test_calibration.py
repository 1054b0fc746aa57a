"""Texts are split into calibration and evaluation texts that share no text."""

import pytest
import torch

from interventions import texts_of, tokenised
from saematch.core.errors import InputError
from saematch.texts.calibration import Calibration


def split(calibration, texts):
    """Return the halves of a single text set."""
    return calibration.split({"t": texts})["t"]


def rows(texts):
    return [tuple(ids.tolist()) for ids in texts.ids.split(texts.lengths.tolist())]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_halves_share_no_text_and_keep_all(share, seed):
    texts = texts_of(20, 0)
    repeated = tokenised([torch.tensor(row) for row in (*rows(texts), *rows(texts)[5:15])])
    halves = split(Calibration(share, seed), repeated)
    fitted, evaluated = map(rows, halves)
    assert not set(fitted) & set(evaluated)
    assert sorted(fitted + evaluated) == sorted(rows(repeated))
    assert len(set(fitted)) == round(share * 20)
    counts = torch.cat([half.counts for half in halves])
    assert counts.sum() == repeated.counts.sum()
    assert rows(halves.calibration) == [row for row in rows(repeated) if row in set(fitted)]


def test_the_seed_chooses_the_texts():
    texts = texts_of(20, 0)
    first, same, other = (rows(split(Calibration(0.5, s), texts)[0]) for s in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_both_halves_have_a_text(share):
    for n in (2, 3):
        assert all(len(half.lengths) for half in split(Calibration(share), texts_of(n, 0)))


def test_a_set_without_two_different_texts_is_refused():
    same = tokenised([torch.tensor([0, 5, 6])] * 3)
    with pytest.raises(InputError, match=r"text set 'mine' has only 1 text .*at least 2"):
        Calibration().split({"mine": same})


def test_equal_texts_of_two_sets_go_to_the_same_part():
    texts = texts_of(30, 0)
    first, second = (tokenised([torch.tensor(row) for row in rows(texts)[a:b]]) for a, b in PARTS)
    for seed in range(4):
        halves = Calibration(seed=seed).split({"a": first, "b": second, "c": first})
        fitted, evaluated = (
            {row for of_set in halves.values() for row in rows(of_set[part])} for part in (0, 1)
        )
        assert not fitted & evaluated
        assert halves["a"][0].ids.equal(halves["c"][0].ids)
        assert [len(set(rows(of_set.calibration))) for of_set in halves.values()] == [10, 10, 10]


PARTS = ((0, 20), (10, 30))


def test_a_set_that_is_in_one_part_of_an_earlier_set_is_refused():
    texts = texts_of(20, 0)
    fitted = split(Calibration(), texts).calibration
    with pytest.raises(InputError, match=r"'b' are in an earlier set.* all calibration texts"):
        Calibration().split({"a": texts, "b": fitted})


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_of_all_or_nothing_is_refused(share):
    with pytest.raises(InputError, match=r"calibration\.share="):
        Calibration(share)

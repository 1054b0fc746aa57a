"""Texts are split into calibration and evaluation texts that share no text."""

import pytest
import torch

from interventions import texts_of, tokenised
from saematch.core.errors import InputError
from saematch.texts.calibration import Calibration


def rows(texts):
    return [tuple(ids.tolist()) for ids in texts.ids.split(texts.lengths.tolist())]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_halves_share_no_text_and_keep_all(share, seed):
    texts = texts_of(20, 0)
    repeated = tokenised([torch.tensor(row) for row in (*rows(texts), *rows(texts)[5:15])])
    halves = Calibration(share, seed).split("t", repeated)
    fitted, evaluated = map(rows, halves)
    assert not set(fitted) & set(evaluated)
    assert sorted(fitted + evaluated) == sorted(rows(repeated))
    assert len(set(fitted)) == round(share * 20)
    counts = torch.cat([half.counts for half in halves])
    assert counts.sum() == repeated.counts.sum()
    assert rows(halves.calibration) == [row for row in rows(repeated) if row in set(fitted)]


def test_the_seed_chooses_the_texts():
    texts = texts_of(20, 0)
    first, same, other = (rows(Calibration(0.5, s).split("t", texts)[0]) for s in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_both_halves_have_a_text(share):
    for n in (2, 3):
        assert all(len(half.lengths) for half in Calibration(share).split("t", texts_of(n, 0)))


def test_a_set_without_two_different_texts_is_refused():
    same = tokenised([torch.tensor([0, 5, 6])] * 3)
    with pytest.raises(InputError, match=r"text set 'mine' has 1 different text.*at least 2"):
        Calibration().split("mine", same)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_of_all_or_nothing_is_refused(share):
    with pytest.raises(InputError, match=r"calibration\.share="):
        Calibration(share)

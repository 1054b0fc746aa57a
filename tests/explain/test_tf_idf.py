"""TF-IDF vectors against values that were computed by hand."""

from math import log, sqrt
from pathlib import Path

import numpy as np

from saematch.explain.tf_idf import TfIdf

NOWHERE = Path("nowhere")


def test_the_cosine_is_that_of_a_hand_computation():
    texts = ["red river", "the red lake", "blue sky", "red"]
    vectors = TfIdf().embed(texts, NOWHERE)
    red, alone = 1 + log(5 / 4), 1 + log(5 / 2)  # in three texts of four, and in one
    length = sqrt(red**2 + alone**2)
    expected = [[1, red**2 / length**2, 0, red / length],
                [red**2 / length**2, 1, 0, red / length],
                [0, 0, 1, 0],
                [red / length, red / length, 0, 1]]  # fmt: skip
    np.testing.assert_allclose((vectors @ vectors.T).toarray(), expected, atol=1e-12)


def test_a_quoted_token_is_a_word_and_common_words_are_none():
    texts = ['active on "the" (60%), "(" (40%)', 'active on "(" (9%)', "a token of the text"]
    cosines = (vectors := TfIdf().embed(texts, NOWHERE)) @ vectors.T
    rare, shared = 1 + log(4 / 2), 1 + log(4 / 3)
    assert np.isclose(cosines[[0], [1]][0], shared / sqrt(shared**2 + rare**2))
    assert cosines[[2], [2]][0] == 0, "the last text has no word"


def test_texts_without_any_word_have_vectors_of_zero():
    assert TfIdf().embed(["the text", "a token"], NOWHERE).nnz == 0

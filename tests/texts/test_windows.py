"""Windows of tokens for training."""

import types
from itertools import pairwise

import pytest

from saematch.texts.sources import TextSet
from saematch.texts.windows import windows


class Letters:
    """A tokenizer with one token per letter: a is 1, and both the end of a text and ` are 0."""

    eos_token_id: int | None = 0

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return types.SimpleNamespace(input_ids=[[ord(c) - 96 for c in text] for text in texts])


def cut(texts, context, n_tokens, bos_id=99, seed=0, tokenizer=None):
    sets = [TextSet(str(number), of_set) for number, of_set in enumerate(texts)]
    vocabulary = types.SimpleNamespace(
        tokenizer=tokenizer or Letters(), bos_id=bos_id, special_ids=frozenset()
    )
    return windows(sets, vocabulary, context, n_tokens, seed).tolist()


def test_windows_by_hand():
    assert sorted(cut([("abcdefgh",)], 4, 8)) == [[99, 1, 2, 3], [99, 4, 5, 6]]
    assert cut([("ab", "ab")], 6, 6) == [[99, 1, 2, 99, 1, 2]]
    assert cut([("", "abc")], 4, 1) == [[99, 1, 2, 3]], "of a part of a window a whole one"


def test_no_window_begins_with_two_bos():
    rows = cut([("abc", "abc", "abc")], 4, 12)
    assert rows == [[99, 1, 2, 3]] * 3


def test_without_bos_a_window_just_begins():
    rows = cut([("abc", "abc")], 4, 8, bos_id=None)
    assert sorted(rows) == [[1, 2, 3, 0]] * 2
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    assert cut([("abc", "abc")], 6, 6, bos_id=None, tokenizer=tokenizer) == [[1, 2, 3, 1, 2, 3]]


def test_sets_take_turns_and_have_equal_shares():
    rows = cut([("a" * 300,), ("b" * 300,), ("c" * 300,)], 5, 5 * 100)
    assert len(rows) == 100
    assert [row[1] for row in rows] == ([1, 2, 3] * 34)[:100]


def test_windows_are_shuffled_by_the_seed():
    texts = [tuple(chr(97 + n) * 9 for n in range(26))]
    first, same, other = (cut(texts, 4, 4 * 40, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    firsts = [row[1] for row in first]
    assert len(set(firsts)) > 10
    adjacent = sum(abs(a - b) <= 1 for a, b in pairwise(firsts))
    assert adjacent < 20, "windows of one document do not follow each other"


def test_many_documents(monkeypatch):
    monkeypatch.setattr("saematch.texts.windows.DOCUMENTS", 3)
    rows = cut([tuple(chr(97 + n) for n in range(26))], 11, 11 * 5, bos_id=99)
    seen = [token for row in rows for token in row[1:] if token != 99]
    assert len(seen) == len(set(seen)) == 25, "each document of one letter at most once"


def test_too_few_tokens_say_how_many_there_are():
    message = r"n_tokens=40 takes 20 tokens of the text set '1', which has only 8 .*n_tokens=16 at"
    with pytest.raises(ValueError, match=message):
        cut([("a" * 99,), ("b" * 7,)], 4, 40)
    for context, n_tokens, texts in ((2, 9, [("abc",)]), (4, 0, [("abc",)]), (4, 9, [])):
        with pytest.raises(ValueError, match="a window has at least 3 tokens"):
            cut(texts, context, n_tokens)

import types

import pytest
import torch

from saematch.texts.reading import Text
from saematch.texts.sources import LocalTexts, TextSet, ZooTexts, draw
from saematch.texts.tokens import tokenise


class Letters:
    """A vocabulary of one token for each letter; a is 1."""

    special_ids = frozenset({0})

    def __init__(self, bos_id=0):
        self.bos_id = bos_id

    def tokenizer(self, texts, add_special_tokens):
        assert not add_special_tokens
        return types.SimpleNamespace(input_ids=[[ord(c) - 96 for c in text] for text in texts])


def test_batches_by_hand():
    batches = tokenise(TextSet("t", ("ab", "abcdef", "abc")), Letters(), 5).batches(2)
    assert batches[0].ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]
    assert batches[0].counts.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    assert batches[0].predicts.int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]
    assert batches[1].ids.tolist() == [[0, 1, 2]]
    assert batches[1].predicts.int().tolist() == [[0, 1, 0]]


def test_every_text_has_something_that_counts():
    for batch in tokenise(TextSet("t", ("ab", "abcd", "abcdefgh")), Letters(), 3).batches(2):
        assert batch.predicts.any(dim=1).all()


@pytest.mark.parametrize("text", ["", "a"])
def test_texts_shorter_than_two_tokens_are_refused(text):
    with pytest.raises(ValueError, match=r"text 1 of the set 't': .*at least 2 consecutive tok"):
        tokenise(TextSet("t", ("ab", text)), Letters(), 8)


def test_without_bos_the_first_token_of_a_text_does_not_count():
    tokens = tokenise(TextSet("t", ("abc", "abcdef")), Letters(None), 5)
    assert tokens.lengths.tolist() == [3, 5]
    (batch,) = tokens.batches(2)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    assert batch.counts.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert batch.predicts.int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"text 0 of the set 't': 'ab' has 2 .*which 1 count"):
        tokenise(TextSet("t", ("ab",)), Letters(None), 5)


def test_drawing_is_seeded_and_without_replacement():
    texts = [Text(str(i), f"line {i}") for i in range(50)]
    first, same, other = (draw("t", texts, 20, seed).texts for seed in (1, 1, 2))
    assert first == same != other
    assert len(set(first)) == 20


def test_sets_that_are_empty_are_refused():
    with pytest.raises(ValueError, match="'t' is empty"):
        draw("t", [], 1, 0)


def test_local_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "o\u2028ne"}\n\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("first\ntext\n\n\nsecond\n")
    paths = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"))
    a, b = LocalTexts(paths, n_texts=2, max_tokens=8).load()
    assert (a.name, sorted(a.texts)) == ("a", ["o\u2028ne", "two"])
    assert (b.name, sorted(b.texts)) == ("b", ["first\ntext", "second"])


@pytest.mark.parametrize("line", ["{", '{"body": "x"}', "[1]"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        LocalTexts((str(path),), n_texts=1, max_tokens=8).load()


def test_a_missing_file_and_an_unknown_kind():
    with pytest.raises(ValueError, match="cannot read"):
        LocalTexts(("nowhere.jsonl",), n_texts=1, max_tokens=8).load()
    with pytest.raises(ValueError, match="no texts of kind 'poems', only code, docs, prose"):
        ZooTexts(("poems",), n_texts=1, max_tokens=8).load()


@pytest.mark.parametrize(("n_texts", "max_tokens"), [(0, 8), (1, 2)])
def test_sizes_that_leave_nothing_are_refused(n_texts, max_tokens):
    with pytest.raises(ValueError, match="at least"):
        ZooTexts(("prose",), n_texts, max_tokens)


def test_predicts_never_reaches_over_the_end():
    batch = tokenise(TextSet("t", ("abc",)), Letters(), 8).batches(1)[0]
    assert torch.equal(batch.predicts, torch.tensor([[False, True, True, False]]))

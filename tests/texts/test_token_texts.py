"""Tokens as text: leading spaces stay, and parts of characters are readable."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from saematch.lm.source import LmSource
from saematch.texts.token_texts import token_text


@pytest.fixture(scope="module")
def byte_level():
    return LmSource("zoo", "zoo").load().tokenizer


def test_tokens_of_a_byte_level_vocabulary(byte_level):
    def text(piece):
        return token_text(byte_level, byte_level.convert_tokens_to_ids(piece))

    assert text("Ġqu") == " qu"
    assert text("et") == "et"
    assert text("Ċ") == "\n"
    assert text("<|bos|>") == "<|bos|>"
    assert text("âĢ") == r"\xe2\x80"
    assert text("ł") == r"\xa0"


def test_every_token_of_the_embedded_model_has_a_text_without_invalid_characters(byte_level):
    texts = [token_text(byte_level, token) for token in range(len(byte_level))]
    assert not [text for text in texts if "\ufffd" in text or not text]


@pytest.fixture(scope="module")
def sentence_piece():
    vocabulary = {"<unk>": 0, "▁the": 1, "the": 2, "<0xE2>": 3, "\ufffd": 4, "▁": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_tokens_of_sentence_piece(sentence_piece):
    texts = [token_text(sentence_piece, token) for token in range(1, 6)]
    assert texts == [" the", "the", "<0xE2>", "\ufffd", " "]


def test_a_tokenizer_whose_pieces_are_no_bytes_keeps_its_own_text():
    tokenizer = SimpleNamespace(
        decode=lambda ids, **_: "\ufffd", convert_ids_to_tokens=lambda token: "▁\ufffd"
    )
    assert token_text(tokenizer, 0) == "\ufffd"

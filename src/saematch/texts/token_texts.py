"""Single tokens as text, for people to read."""

from __future__ import annotations

from typing import Any

INVALID = "\ufffd"
"""Character that a tokenizer writes for bytes that are not valid UTF-8 on their own."""


def token_text(tokenizer: Any, token: int) -> str:
    r"""Return a token as text, with its leading space.

    The bytes of a token that is a part of a character are written as in ``\xe2\x80``, if the
    vocabulary shows them: as characters (byte-level BPE) or in words (``<0xE2>``).
    """
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if INVALID in text:
        piece = tokenizer.convert_ids_to_tokens(token)
        if all(character in _BYTES for character in piece):
            return bytes(map(_BYTES.__getitem__, piece)).decode(errors="backslashreplace")
    elif not text.startswith(" ") and tokenizer.convert_ids_to_tokens(token).startswith("▁"):
        return f" {text}"  # SentencePiece drops the space in front of a first word
    return text


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character in a vocabulary of bytes (GPT-2, ``bytes_to_unicode``).

    Printable characters of Latin-1 are their own bytes. The others, in order, follow 255.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


_BYTES = _byte_characters()

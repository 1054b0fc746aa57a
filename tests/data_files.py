"""An independent reader of the page's data files, written from their description."""

import gzip
import json
from pathlib import Path

import numpy as np


def read(folder: Path, name: str):
    """Return the value of a data file: an object, or its parts by name."""
    text = (folder / f"{name}.js").read_bytes()
    start = b"saematch.receive(" + json.dumps(name).encode() + b","
    assert text.startswith(start)
    assert text.endswith(b")\n")
    assert max(text) < 128, "ASCII means the same in every encoding"
    value = text[len(start) : -2]
    return parts(unquoted(value)) if value[:1] == b'"' else json.loads(value)


def unquoted(string: bytes) -> bytes:
    """Return the bytes of a JavaScript string with 7 bits in each character."""
    characters, escapes = [], {ord("n"): 10, ord("r"): 13, ord("\\"): 92, ord('"'): 34}
    inner = iter(string[1:-1])
    for character in inner:
        assert character not in b'"\n\r', "it would end the string"
        characters.append(escapes[next(inner)] if character == ord("\\") else character)
    bits = "".join(f"{character:07b}" for character in characters)
    content = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return content[: -content[-1]]


def parts(packed: bytes) -> dict:
    """Return arrays and JSON values by name."""
    content = gzip.decompress(packed)
    length = int.from_bytes(content[:4], "little")
    place = 4 + length
    values = {}
    for name, kind, n in json.loads(content[4:place]):
        if kind == "json":
            values[name] = json.loads(content[place : place + n])
            place += n
        elif kind == "decimal":
            mantissas = array(content[place : place + 2 * n], np.dtype("<i2"), n)
            exponents = array(content[place + 2 * n : place + 3 * n], np.dtype("i1"), n)
            pairs = zip(mantissas.tolist(), exponents.tolist(), strict=True)
            values[name] = np.array([decimal(*pair) for pair in pairs])
            place += 3 * n
        else:
            dtype = np.dtype(kind)
            values[name] = array(content[place : place + n * dtype.itemsize], dtype, n)
            place += n * dtype.itemsize
    assert place == len(content)
    return values


def array(content: bytes, dtype: np.dtype, n: int) -> np.ndarray:
    """Return an array of which the first bytes of all elements come first, then the second."""
    elements = [bytes(content[place::n]) for place in range(n)]
    return np.frombuffer(b"".join(elements), dtype)


def decimal(mantissa: int, exponent: int) -> float:
    special = {-32768: np.nan, 32767: np.inf, -32767: -np.inf}
    return special[mantissa] if mantissa in special else float(f"{mantissa}e{exponent}")

"""Words of explanations."""

from __future__ import annotations

import re

_COMMON = """
a about all also an and any are as at be been being both but by can do does each especially etc for
from had has have if in including into is it its like may more most no not of on one only or other
out over s some such t than that the their them then there these they this those to up used was were
what when where which who will with within
active activates activations context contexts expression expressions feature features indicate
indicates indicating instance instances mention mentions occurrence occurrences phrase phrases
related reference references referring refers specific specifically term terms text texts token
tokens various word words
"""
QUOTED = re.compile(r'"("|"?(?:[^"]|"(?="))+)" \(\d+%\)|["“](\S+?)["”]')
"""A token with its share, as in explanations by tokens, or a word in quotes."""
WORD = re.compile(r"\w+")
COMMON = frozenset(_COMMON.split())
"""Words without information about a feature: first those of any sentence, then those of any
explanation."""


def words(text: str) -> frozenset[str]:
    """Return the words of an explanation in lower case, without those in ``COMMON``.

    Text in quotes is a token and counts as one word, even if it is a common word or a bracket.
    """
    tokens = [token or word for token, word in QUOTED.findall(text)]
    plain = WORD.findall(QUOTED.sub(" ", text).lower())
    return frozenset([*(token.lower() for token in tokens), *(w for w in plain if w not in COMMON)])

"""From an answer to a verdict, and from verdicts to agreement."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from saematch.chat.answers import json_object
from saematch.chat.questions import Reply
from saematch.evaluate.intervals import Values, Weights

SCORES = {"DIFFERENT": 1, "MAYBE": 2, "SAME": 3}
"""The labels that count, and their ``judge_score``."""
UNSCORED = ("UNPARSED", "REFUSED", "UNEXPLAINED", "UNASKED")
"""Kept and counted, left out of means: no label in the answer; an answer declined; a feature
without an explanation; not in the cache, where nothing else may be asked."""
LABELS = (*SCORES, *UNSCORED)

_GRADES = {score: label for label, score in SCORES.items()}
_LABEL = re.compile(r'(?i)label"?[\s*_]*[:=][\s*_"(]*(-?\d+(?:\.\d+)?)')


class Verdict(NamedTuple):
    """What came of one judgement."""

    label: str
    """One of ``LABELS``."""
    evaluation: str = ""
    """The judge's reason."""

    @property
    def score(self) -> int | None:
        """1 to 3, None for a label that does not count."""
        return SCORES.get(self.label)


def read_verdict(reply: Reply) -> Verdict:
    """Read a judgement: the JSON that was asked for, else the last label in the text.

    A label other than 1, 2 and 3 is none, and so is any in a text that was cut off: nothing is
    rounded or guessed.
    """
    if reply.refused:
        return Verdict("REFUSED", reply.content)
    found = json_object(reply.content)
    if found is not None:
        return Verdict(_label(found.get("label")), str(found.get("evaluation", "")))
    text = reply.content.strip()
    if reply.finish_reason == "length":  # cut off before it came to a label
        return Verdict("UNPARSED", text)
    grades = _LABEL.findall(text)
    grade = grades[-1] if grades else text.strip("*.\"' ")
    return Verdict(_label(grade), text)


def _label(grade: object) -> str:
    """Return the label of a grade given as a whole number or its digit."""
    plain = str(grade).strip() if isinstance(grade, int | str) else ""
    return _GRADES.get(int(plain), "UNPARSED") if plain in ("1", "2", "3") else "UNPARSED"


def kappa(weights: Weights, one: torch.Tensor, other: torch.Tensor) -> Values:
    """Return Cohen's kappa of two lists of scores 1 to 3 of the same things.

    ``weights`` as in ``evals.intervals``, one column for each thing. NaN where chance alone agrees
    wholly, as when both give one label throughout.
    """
    grades = torch.tensor(sorted(SCORES.values()))
    mine, theirs = ((scores[:, None] == grades).double() for scores in (one, other))
    n = weights.sum(dim=1)
    agree = weights @ (one == other).double() / n
    chance = ((weights @ mine) * (weights @ theirs)).sum(dim=1) / n.square()
    return torch.where(chance < 1, (agree - chance) / (1 - chance), torch.nan)

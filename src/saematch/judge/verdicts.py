"""Verdicts from a judge's answers, and agreement between verdicts."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from saematch.chat.answers import json_object
from saematch.chat.questions import Reply
from saematch.evaluate.intervals import Values, Weights

SCORES = {"DIFFERENT": 1, "MAYBE": 2, "SAME": 3}
"""Labels that count, and their ``judge_score``."""
UNSCORED = ("UNPARSED", "REFUSED", "UNEXPLAINED", "UNASKED")
"""Labels that are counted and left out of means: no label in the answer, a refusal to answer, a
feature without an explanation, and a question without a stored answer if no request is allowed."""
LABELS = (*SCORES, *UNSCORED)

_GRADES = {score: label for label, score in SCORES.items()}
_LABEL = re.compile(r'(?i)label"?[\s*_]*[:=][\s*_"(]*(-?\d+(?:\.\d+)?)')


class Verdict(NamedTuple):
    """Outcome of a judgement."""

    label: str
    """One of ``LABELS``."""
    evaluation: str = ""
    """The judge's reason."""

    @property
    def score(self) -> int | None:
        """Score from 1 to 3; None for a label that does not count."""
        return SCORES.get(self.label)


def read_verdict(reply: Reply) -> Verdict:
    """Return the verdict of a reply: the label of its JSON, else the last label in its text.

    Labels other than 1, 2 and 3 do not count, nor do labels in a text that was cut off. No label is
    rounded or guessed.
    """
    if reply.refused:
        return Verdict("REFUSED", reply.content)
    answer = json_object(reply.content)
    if answer is not None:
        return Verdict(_label(answer.get("label")), str(answer.get("evaluation", "")))
    text = reply.content.strip()
    if reply.finish_reason == "length":  # cut off before the label
        return Verdict("UNPARSED", text)
    grades = _LABEL.findall(text)
    grade = grades[-1] if grades else text.strip("*.\"' ")
    return Verdict(_label(grade), text)


def _label(grade: object) -> str:
    """Return the label of a grade given as a whole number or its digit."""
    plain = str(grade).strip() if isinstance(grade, int | str) else ""
    return _GRADES.get(int(plain), "UNPARSED") if plain in ("1", "2", "3") else "UNPARSED"


def kappa(weights: Weights, first: torch.Tensor, second: torch.Tensor) -> Values:
    """Return Cohen's kappa of two lists of scores 1 to 3 of the same pairs.

    ``weights`` as in ``evaluate.intervals``, with a column for each pair. NaN if the
    expected agreement is 1, for example if both lists have only one label.
    """
    grades = torch.tensor(sorted(SCORES.values()))
    by_grade = [(scores[:, None] == grades).double() for scores in (first, second)]
    n = weights.sum(dim=1)
    agree = weights @ (first == second).double() / n
    chance = ((weights @ by_grade[0]) * (weights @ by_grade[1])).sum(dim=1) / n.square()
    return torch.where(chance < 1, (agree - chance) / (1 - chance), torch.nan)

"""A judge that is no LLM: it counts the words that two explanations share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from saematch.chat.questions import Judge, Question, Reply
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.specs import spec
from saematch.judge.prompts import JUDGE
from saematch.judge.verdicts import SCORES

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
_QUOTED = re.compile(r'"("|"?(?:[^"]|"(?="))+)" \(\d+%\)|["“](\S+?)["”]')
"""A token with its share, as explanations by tokens have it, or a word in quotes."""
_WORD = re.compile(r"\w+")
COMMON = frozenset(_COMMON.split())
"""Words that say nothing of what a feature is about: those of any sentence, and then those of any
explanation."""


@spec("judge")
class WordOverlap:
    """Spec of a judge without LLM: what an LLM's scores have to beat.

    The overlap of two explanations is the Jaccard index of their words: how many both have, divided
    by how many either has. The thresholds are set by the controls of the embedded SAEs: at most 3 %
    of random pairs overlap by 0.1, and of the explanations of one feature from two halves of the
    texts 60 to 70 % do by 0.3.
    """

    maybe: float = 0.1
    """Overlap from which on two explanations are MAYBE the same; below it they are DIFFERENT."""
    same: float = 0.3
    """Overlap from which on they are the SAME."""

    def __post_init__(self) -> None:
        if not 0 < self.maybe <= self.same <= 1:
            raise InputError(
                f"judge.maybe={self.maybe} and judge.same={self.same} are shares of words: "
                "they must be above 0 and at most 1, and maybe no larger than same"
            )


class OverlapJudge(Judge):
    """Judges pairs of explanations by their words, each at once; nothing is kept."""

    writes: ClassVar[bool] = False

    def __init__(self, spec: WordOverlap) -> None:
        self.spec = spec
        self.model = f"overlap {spec.maybe}/{spec.same}"
        self.answers = 0

    def ask(self, questions: Sequence[Question], what: str) -> dict[Question, Reply]:
        """Return the judgements of pairs; nothing else may be asked."""
        assert all(question.prompt is JUDGE for question in questions)
        found = {question: self._judged(*question.texts) for question in questions}
        self.answers += len(found)
        return found

    def _judged(self, one: str, other: str) -> Reply:
        """Return a judgement in the form of an LLM's; without a label if a text has no words."""
        a, b = words(one), words(other)
        if not a or not b:
            return self._reply("nothing to compare: a text has common words alone", None)
        both, either = sorted(a & b), a | b
        overlap = len(both) / len(either)
        alike = "SAME" if overlap >= self.spec.same else "MAYBE"
        label = alike if overlap >= self.spec.maybe else "DIFFERENT"
        said = f"{len(both)} of {len(either)} words shared: {', '.join(both) or 'none'}"
        return self._reply(said, SCORES[label])

    def _reply(self, evaluation: str, label: int | None) -> Reply:
        content = json.dumps({"evaluation": evaluation, "label": label})
        return Reply(content, served_by=self.model)

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Nothing goes in, comes out or is paid."""
        return 0, 0, 0.0

    def close(self) -> None:
        """There is nothing to close."""

    def provenance(self) -> dict[str, Any]:
        """Return what judged: thresholds, and the hash of what counts as a word."""
        rule = hashed([_QUOTED.pattern, _WORD.pattern, sorted(COMMON)])[:8]
        return {"model": self.model, "rule": rule, **vars(self.spec), "answers": self.answers}


def words(text: str) -> frozenset[str]:
    """Return the words of an explanation in small letters, without those of ``COMMON``.

    What stands in quotes is a token: it is taken whole, even a common word or a bracket.
    """
    tokens = [token or word for token, word in _QUOTED.findall(text)]
    said = _WORD.findall(_QUOTED.sub(" ", text).lower())
    return frozenset([*(token.lower() for token in tokens), *(w for w in said if w not in COMMON)])

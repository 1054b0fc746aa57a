"""A judge without an LLM, which counts the words that two explanations share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from saematch.chat.questions import Judge, Question, Reply
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.specs import spec
from saematch.explain.words import COMMON, QUOTED, WORD, words
from saematch.judge.prompts import JUDGE
from saematch.judge.verdicts import SCORES


@spec("judge")
class WordOverlap:
    """Spec of a judge without an LLM: the baseline for an LLM's scores.

    The overlap of two explanations is the Jaccard index of their words: the number of shared words
    divided by the number of words in either. The thresholds come from the controls of the embedded
    SAEs. At most 3 % of random pairs overlap by 0.1 or more; 60 to 70 % of the pairs of
    explanations of one feature, from two halves of the texts, overlap by 0.3 or more.
    """

    maybe: float = 0.1
    """Least overlap for MAYBE; explanations with less are DIFFERENT."""
    same: float = 0.3
    """Least overlap for SAME."""

    def __post_init__(self) -> None:
        if not 0 < self.maybe <= self.same <= 1:
            raise InputError(
                f"judge.maybe={self.maybe} and judge.same={self.same} are shares of words: "
                "they must be above 0 and at most 1, and maybe no larger than same"
            )


class OverlapJudge(Judge):
    """Judges pairs of explanations by their words, and stores no answers."""

    writes: ClassVar[bool] = False
    remark: ClassVar[str] = "word overlap, no LLM"

    def __init__(self, spec: WordOverlap) -> None:
        self.spec = spec
        self.model = f"overlap {spec.maybe}/{spec.same}"
        self.answers = 0

    def ask(self, questions: Sequence[Question], noun: str) -> dict[Question, Reply]:
        """Return the judgements of pairs; other questions are not allowed."""
        assert all(question.prompt is JUDGE for question in questions)
        replies = {question: self._judged(*question.texts) for question in questions}
        self.answers += len(replies)
        return replies

    def _judged(self, first: str, second: str) -> Reply:
        """Return a judgement in an LLM's form, without a label if a text has no words."""
        a, b = words(first), words(second)
        if not a or not b:
            return self._reply("nothing to compare: a text has only common words", None)
        shared, union = sorted(a & b), a | b
        overlap = len(shared) / len(union)
        alike = "SAME" if overlap >= self.spec.same else "MAYBE"
        label = alike if overlap >= self.spec.maybe else "DIFFERENT"
        reason = f"{len(shared)} of {len(union)} words shared: {', '.join(shared) or 'none'}"
        return self._reply(reason, SCORES[label])

    def _reply(self, evaluation: str, label: int | None) -> Reply:
        content = json.dumps({"evaluation": evaluation, "label": label})
        return Reply(content, served_by=self.model)

    def estimate(self, questions: Sequence[Question]) -> tuple[int, int, float]:
        """Return no tokens and no cost."""
        return 0, 0, 0.0

    def close(self) -> None:
        """Do nothing, since nothing is open."""

    def provenance(self) -> dict[str, Any]:
        """Return the thresholds, and a hash of the rule for words."""
        rule = hashed([QUOTED.pattern, WORD.pattern, sorted(COMMON)])[:8]
        return {"model": self.model, "rule": rule, **vars(self.spec), "answers": self.answers}

"""The evaluation ``explain``: explanations of the features that other evaluations list."""

from __future__ import annotations

from typing import ClassVar

from saematch.core.specs import spec
from saematch.evaluate.evaluation import Evaluation


@spec("evaluations.explain")
class Explain(Evaluation):
    """Spec of the evaluation ``explain``.

    The tables ``features`` and ``paths`` get the explanations of both features of each row. A run
    with a judge has explanations without this evaluation.
    """

    explains: ClassVar[bool] = True

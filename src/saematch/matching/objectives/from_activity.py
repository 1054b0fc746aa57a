"""Base class of the objectives that compare the activations of features on the same tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from saematch.core.match import largest_in_rows
from saematch.core.pairs import Pair
from saematch.core.specs import AtLeast1, spec
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.co_active import CoActive, PairCodes
from saematch.sae.codes import CodesRecorder
from saematch.sae.params import SaeParams
from saematch.sae.recorders import Recording
from saematch.sae.sites import model_refusal
from saematch.sae.suites import SaeFacts


@spec("objective")
class FromActivity(ABC):
    """Scores of the pairs of features that are active together on calibration texts.

    One recording of the active features serves all these objectives and all pairs. Scores are exact
    and use all calibration tokens that count. The candidates of a source feature are the targets
    with the largest scores among all that are active together with it on at least ``floor`` tokens.
    So their recall against dense statistics is 1 by construction. A feature without candidates
    stays unmatched.

    Cost: ``n_tokens * L0_source * L0_target`` additions, and one comparison for each of the
    ``n_source * n_target`` pairs. Memory: less than 1 GiB for 16,384 features and 256 candidates,
    for any number of tokens.
    """

    n_candidates: AtLeast1 = 256
    """Largest number of candidates of a source feature."""
    floor: AtLeast1 = 1
    """Least number of tokens on which both features of a candidate pair are active. A higher floor
    leaves more features unmatched: on the embedded family ``mixed`` with 4,572 tokens, 12 % without
    a floor, 25 % at 3 and 56 % at 10, and the best partner by correlation is no more often true."""

    divide: ClassVar[bool] = False
    """Whether ``CoActive.sums`` has sums of quotients of activations instead of products."""

    def recorder(self, folder: Path, pairs: Sequence[Pair]) -> CodesRecorder:
        """Return the recorder of the codes of all SAEs."""
        return CodesRecorder(folder, tuple(dict.fromkeys(key for pair in pairs for key in pair)))

    def candidates(
        self, pair: Pair, recording: Recording, source: SaeParams, target: SaeParams
    ) -> Candidates:
        """Return the candidates with their scores."""
        codes = PairCodes(recording, pair, source.n_features, target.n_features)
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for pairs in codes.co_active(self.floor, self.divide):
            scores = self.scores(pairs, source, target)
            kept = largest_in_rows(pairs.places, scores, self.n_candidates)
            kept &= scores > -np.inf
            parts.append((pairs.rows[kept], pairs.columns[kept], scores[kept]))
        rows, columns, of_pairs = (
            torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)
        )
        return Candidates(rows, columns, of_pairs, source.n_features, target.n_features)

    @abstractmethod
    def scores(
        self, pairs: CoActive, source: SaeParams, target: SaeParams
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each pair; ``-inf`` where it is undefined."""

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Refuse SAEs of two language models, whose tokens may differ."""
        return model_refusal(
            f"{type(self).__name__} compares activations on the same tokens, so it",
            source.origin, target.origin,
        )  # fmt: skip

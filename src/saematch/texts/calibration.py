"""Split texts into those that fit quantities and those that evaluate them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saematch.core.errors import InputError
from saematch.core.specs import Seed, spec
from saematch.texts.tokens import TokenisedTexts


class Halves(NamedTuple):
    """The two parts of a text set, which share no text."""

    calibration: TokenisedTexts
    evaluation: TokenisedTexts


@spec("calibration")
class Calibration:
    """Spec of the split into calibration and evaluation texts.

    A run splits its texts only if it fits something to activations: objectives that read activity,
    gains of the strategy ``increment``, or the evaluation ``verify``. Evaluations then read the
    evaluation texts alone.
    """

    share: float = 0.5
    """Share of the texts of each set that become calibration texts, between 0 and 1 (exclusive)."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"calibration.share={self.share} must lie between 0 and 1")

    def split(self, name: str, tokens: TokenisedTexts) -> Halves:
        """Split a text set at random; equal texts go to the same part.

        Both parts get at least one text. Raises ``InputError`` for a set without two different
        texts.
        """
        texts = [tuple(ids.tolist()) for ids in tokens.ids.split(tokens.lengths.tolist())]
        different = list(dict.fromkeys(texts))
        n = len(different)
        if n < 2:
            raise InputError(
                f"the text set {name!r} has {n} different text, and this run needs at least 2: it "
                "fits quantities to some texts and evaluates them on others; take more texts "
                "(dataset.n_texts)"
            )
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed)).tolist()
        chosen = {different[i] for i in order[: min(max(round(self.share * n), 1), n - 1)]}
        fitted = torch.tensor([text in chosen for text in texts])
        return Halves(tokens.only(fitted), tokens.only(~fitted))

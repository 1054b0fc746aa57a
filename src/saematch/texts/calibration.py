"""Split texts into those that fit quantities and those that evaluate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from saematch.core.errors import InputError
from saematch.core.specs import Seed, spec
from saematch.texts.tokens import TokenisedTexts

Text = tuple[int, ...]
"""Token ids of a text."""


class Halves(NamedTuple):
    """The two parts of a text set, which share no text."""

    calibration: TokenisedTexts
    evaluation: TokenisedTexts


@spec("calibration")
class Calibration:
    """Spec of the split into calibration and evaluation texts.

    A run splits its texts only if it fits something to them: objectives that read activity or
    explanations from the texts, transported vectors, gains of the strategy ``increment``, or the
    evaluation ``verify``. Evaluations then read the evaluation texts alone.
    """

    share: float = 0.5
    """Share of the texts of each set that become calibration texts, between 0 and 1 (exclusive)."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"calibration.share={self.share} must lie between 0 and 1")

    def split(self, sets: Mapping[str, TokenisedTexts]) -> dict[str, Halves]:
        """Split each text set at random; equal texts of all sets go to the same part.

        Both parts of a set get at least one text. Raises ``InputError`` for a set without two
        different texts, and for one whose texts all went to one part with earlier sets.
        """
        is_fitted: dict[Text, bool] = {}
        halves = {}
        for name, tokens in sets.items():
            texts = [tuple(ids.tolist()) for ids in tokens.ids.split(tokens.lengths.tolist())]
            self._assign(name, list(dict.fromkeys(texts)), is_fitted)
            fitted = torch.tensor([is_fitted[text] for text in texts])
            halves[name] = Halves(tokens.only(fitted), tokens.only(~fitted))
        return halves

    def _assign(self, name: str, different: Sequence[Text], is_fitted: dict[Text, bool]) -> None:
        """Add the part of each text of a set to ``is_fitted``, which has those of earlier sets."""
        n = len(different)
        if n < 2:
            raise InputError(
                f"the text set {name!r} has only {n} text (equal texts count once), and this run "
                "needs at least 2: it fits quantities to some texts and evaluates them on others; "
                "take more texts (dataset.n_texts)"
            )
        new = [text for text in different if text not in is_fitted]
        n_fitted = sum(is_fitted.get(text, False) for text in different)
        missing = max(min(max(round(self.share * n), 1), n - 1) - n_fitted, 0)
        order = torch.randperm(len(new), generator=torch.Generator().manual_seed(self.seed))
        for place, number in enumerate(order.tolist()):
            is_fitted[new[number]] = place < missing
        if len({is_fitted[text] for text in different}) < 2:
            raise InputError(
                f"all texts of the text set {name!r} are in an earlier set, in which they are all "
                f"{'calibration' if n_fitted else 'evaluation'} texts: leave one of these sets "
                "out, or set another calibration.seed"
            )

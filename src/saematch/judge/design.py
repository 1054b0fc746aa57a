"""What is judged: feature paths, and the controls that say what a judge's scores are worth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saematch.core.pairs import NO_ARM, Place, SaeKey
from saematch.core.results import Row
from saematch.core.specs import Seed, Some, spec
from saematch.explain.explanations import Explanations, FeatureKey
from saematch.matching.matches import MatchSet

log = logging.getLogger(__name__)

CONTROLS = ("random", "identity", "ceiling", "paraphrase")
AGAIN = ("swapped", "repeated", "second")
"""Pairs that are judged once more: in the other order, again, by the second judge."""


@spec("judging")
class Judging:
    """Spec of what is judged."""

    arms: Some[str] | None = None
    """Arms whose matches are judged; None for all. The others have the controls beside them."""
    n_paths: int = 100
    """Features of each first layer whose matches are judged, drawn from those with an explanation.
    In a run of neighbouring layers each is followed from match to match."""
    random: int = 20
    """Random pairs of explained features at each place: the floor."""
    identity: int = 20
    """Pairs of equal index at each place."""
    ceiling: int = 20
    """Features of each layer judged against another explanation of themselves, by another explainer
    or from other texts: the ceiling. Where there is none, against a paraphrase by the LLM that
    judges."""
    swapped: float = 0.1
    """Share of the pairs judged once more in the other order: position bias."""
    repeated: float = 0.1
    """Share of the pairs judged once more unchanged: self-agreement."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.n_paths < 1 or min(self.random, self.identity, self.ceiling) < 0:
            raise ValueError(
                f"judging.n_paths={self.n_paths} must be at least 1, and judging.random="
                f"{self.random}, identity={self.identity} and ceiling={self.ceiling} at least 0"
            )
        for name in ("swapped", "repeated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"judging.{name}={getattr(self, name)}: a share is 0 to 1")


@dataclass(frozen=True)
class Item:
    """One judgement to be made."""

    role: str
    """``pair`` and ``example`` of an arm; of ``CONTROLS`` and of ``AGAIN``."""
    place: Place
    """Both layers are one for ``ceiling`` and ``paraphrase``."""
    arm: str
    start: int
    """Layer where the path begins; of what is no path, the place's own."""
    path: int
    """Number among those that begin there; of an example its rank, of a control its number."""
    feature_from: int
    feature_to: int

    @property
    def earlier(self) -> FeatureKey:
        """The feature of the earlier layer."""
        return FeatureKey(self.place.earlier, self.feature_from)

    @property
    def later(self) -> FeatureKey:
        """The feature of the later layer."""
        return FeatureKey(self.place.later, self.feature_to)


def path_items(
    matches: MatchSet,
    starts: Sequence[int] | None,
    judging: Judging,
    explanations: Explanations,
    rng: np.random.Generator,
) -> list[Item]:
    """Return the pairs to judge: the same first features in every arm.

    With ``starts`` each place asks for the match of a first layer's features; otherwise a place
    goes on where the one before it ended. A path ends at a feature without a partner.
    """
    items = []
    began: dict[SaeKey, int] = {}
    """Where the paths through a layer begin."""
    drawn: dict[SaeKey, dict[int, int]] = {}
    at: dict[tuple[str, SaeKey], dict[int, int]] = {}
    for place in matches.places:
        key = place.earlier
        follows = starts is None and key in began
        if not follows and key not in drawn:
            known = explanations.features(key)
            chosen = rng.permutation(known)[: judging.n_paths].tolist()
            drawn[key], began[key] = dict(enumerate(chosen)), key.layer
            if len(chosen) < judging.n_paths:
                log.info("only %d features of layer %d are explained", len(known), key.layer)
        start = began[key] if follows else key.layer
        began[place.later] = start
        for arm in judging.arms or matches.by_arm:
            partners = matches.by_arm[arm][place].partners()
            here = at[arm, key] if follows else drawn[key]
            there = {path: int(partners[f]) for path, f in here.items() if partners[f] >= 0}
            at[arm, place.later] = there
            items += [Item("pair", place, arm, start, p, here[p], j) for p, j in there.items()]
    return items


def control_items(
    matches: MatchSet, judging: Judging, explanations: Explanations, rng: np.random.Generator
) -> list[Item]:
    """Return random pairs and pairs of equal index at every place, and features of every layer."""
    items = []
    for place in matches.places:
        key = place.earlier
        known, others = (explanations.features(k) for k in (key, place.later))
        n = min(judging.random, len(known))
        one, other = rng.permutation(known)[:n], rng.choice(others, n)
        both = sorted(set(known) & set(others))
        same = rng.permutation(both)[: judging.identity]
        for role, *pairs in (("random", one, other), ("identity", same, same)):
            for path, (i, j) in enumerate(zip(*pairs, strict=True)):
                items.append(Item(role, place, NO_ARM, key.layer, path, int(i), int(j)))
    keys = dict.fromkeys(key for place in matches.places for key in (place.earlier, place.later))
    for key in keys:
        chosen = rng.permutation(explanations.features(key))[: judging.ceiling]
        itself = Place(key.saes, key.layer, key.layer)
        for n, f in enumerate(chosen.tolist()):
            items.append(Item("ceiling", itself, NO_ARM, key.layer, n, f, f))
    return items


def table_items(role: str, rows: Sequence[Row], path: str) -> list[Item]:
    """Return what a table of the run shows, as items; ``path`` names the column of its number."""
    items = []
    for row in rows:
        columns = ("layer_from", "layer_to", path, "feature_from", "feature_to")
        earlier, later, number, one, other = (int(row[name] or 0) for name in columns)
        start = int(rows[0]["layer_from"] or 0) if role == "pair" else earlier
        place = Place(str(row["saes"]), earlier, later)
        items.append(Item(role, place, str(row["arm"]), start, number, one, other))
    return items

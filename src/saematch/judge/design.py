"""What is judged: feature paths, and the controls that say what a judge's scores are worth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saematch.core.errors import InputError
from saematch.core.pairs import NO_ARM, Pair, SaeKey, pair_of
from saematch.core.specs import AtLeast1, Seed, Some, spec
from saematch.core.tables import Row
from saematch.evaluate.following import BREADTH, Held, begin, follow
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
    breadth: AtLeast1 = BREADTH
    """Most features that a path holds at a layer, those of largest absolute weight. Every entry
    that leaves one is a judged pair."""
    random: int = 20
    """Random pairs of explained features at each pair: the floor."""
    identity: int = 20
    """Pairs of equal index at each pair."""
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
            raise InputError(
                f"judging.n_paths={self.n_paths} must be at least 1, and judging.random="
                f"{self.random}, identity={self.identity} and ceiling={self.ceiling} at least 0"
            )
        for name in ("swapped", "repeated"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"judging.{name}={getattr(self, name)}: a share is 0 to 1")


@dataclass(frozen=True)
class Item:
    """One judgement to be made."""

    role: str
    """``pair`` and ``example`` of an arm; of ``CONTROLS`` and of ``AGAIN``."""
    pair: Pair
    """Both layers are one for ``ceiling`` and ``paraphrase``."""
    arm: str
    start: int
    """Layer where the path begins; of what is no path, the pair's own."""
    path: int
    """Number among those that begin there; of an example its rank, of a control its number."""
    source_feature: int
    target_feature: int

    @property
    def source(self) -> FeatureKey:
        """The feature of the source."""
        return FeatureKey(self.pair.source, self.source_feature)

    @property
    def target(self) -> FeatureKey:
        """The feature of the target."""
        return FeatureKey(self.pair.target, self.target_feature)


def path_items(
    matches: MatchSet,
    chains: bool,
    judging: Judging,
    explanations: Explanations,
    rng: np.random.Generator,
) -> list[Item]:
    """Return the pairs to judge: the same first features in every arm.

    Where the pairing ``chains``, a pair goes on where the one before it ended; otherwise each pair
    asks for the match of its source's features. A path ends where none of its features has a
    partner.
    """
    items = []
    began: dict[SaeKey, int] = {}
    """Where the paths through a layer begin."""
    drawn: dict[SaeKey, Held] = {}
    at: dict[tuple[str, SaeKey], Held] = {}
    for pair in matches.pairs:
        key = pair.source
        follows = chains and key in began
        if not follows and key not in drawn:
            known = explanations.features(key)
            chosen = rng.permutation(known)[: judging.n_paths].tolist()
            drawn[key], began[key] = begin(chosen), key.layer
            if len(chosen) < judging.n_paths:
                log.info("%s: only %d features are explained", key.name, len(known))
        start = began[key] if follows else key.layer
        began[pair.target] = start
        for arm in judging.arms or matches.by_arm:
            if pair not in matches.by_arm[arm]:
                continue
            held = at.get((arm, key), {}) if follows else drawn[key]
            steps, there = follow(held, matches.by_arm[arm][pair], judging.breadth)
            at[arm, pair.target] = there
            items += [
                Item("pair", pair, arm, start, step.path, step.source_feature, step.target_feature)
                for step in steps
            ]
    return items


def control_items(
    matches: MatchSet, judging: Judging, explanations: Explanations, rng: np.random.Generator
) -> list[Item]:
    """Return random pairs and pairs of equal index at every pair, and features of every layer."""
    items = []
    for pair in matches.pairs:
        key = pair.source
        known, others = (explanations.features(k) for k in (key, pair.target))
        n = min(judging.random, len(known))
        one, other = rng.permutation(known)[:n], rng.choice(others, n)
        both = sorted(set(known) & set(others))
        same = rng.permutation(both)[: judging.identity]
        for role, *pairs in (("random", one, other), ("identity", same, same)):
            for path, (i, j) in enumerate(zip(*pairs, strict=True)):
                items.append(Item(role, pair, NO_ARM, key.layer, path, int(i), int(j)))
    keys = dict.fromkeys(key for pair in matches.pairs for key in (pair.source, pair.target))
    for key in keys:
        chosen = rng.permutation(explanations.features(key))[: judging.ceiling]
        itself = Pair(key, key)
        for n, f in enumerate(chosen.tolist()):
            items.append(Item("ceiling", itself, NO_ARM, key.layer, n, f, f))
    return items


def table_items(role: str, rows: Sequence[Row], path: str) -> list[Item]:
    """Return what a table of the run shows, as items; ``path`` names the column of its number."""
    items = []
    began: dict[str, int] = {}
    """First layer of each suite's paths."""
    for row in rows:
        columns = (path, "source_feature", "target_feature")
        number, one, other = (int(row[name] or 0) for name in columns)
        pair = pair_of(row)
        first = began.setdefault(pair.suites, pair.source.layer)
        start = first if role == "pair" else pair.source.layer
        items.append(Item(role, pair, str(row["arm"]), start, number, one, other))
    return items

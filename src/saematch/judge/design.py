"""Choice of pairs to judge: feature paths, and controls that calibrate a judge's scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saematch.core.errors import InputError
from saematch.core.pairs import NO_ARM, Pair, SaeKey, pair_of
from saematch.core.specs import AtLeast1, Seed, Some, spec
from saematch.core.tables import Row
from saematch.evaluate.following import BREADTH, Fronts, begin, follow
from saematch.explain.explanations import Explanations, FeatureKey
from saematch.matching.matches import MatchSet

log = logging.getLogger(__name__)

CONTROLS = ("random", "identity", "ceiling", "paraphrase")
AGAIN = ("swapped", "repeated", "second")
"""Roles of pairs that are judged again: in the other order, unchanged, by the second judge."""


@spec("judging")
class Judging:
    """Spec of the pairs of features that are judged."""

    arms: Some[str] | None = None
    """Arms whose matches are judged; None for all."""
    n_paths: int = 100
    """Number of features of each first layer whose matches are judged, drawn from features with an
    explanation. In a run of neighbouring layers, each is followed from match to match."""
    breadth: AtLeast1 = BREADTH
    """Largest number of features of a path at a layer; those of largest absolute weight are kept.
    Every entry of the match from one of them is a judged pair."""
    random: int = 20
    """Number of random pairs of explained features for each pair of SAEs: the floor."""
    identity: int = 20
    """Number of pairs of equal index for each pair of SAEs."""
    ceiling: int = 20
    """Number of features of each layer that are judged against another explanation of the same
    feature, by another explainer or from other texts: the ceiling. Features with one explanation
    are judged against a paraphrase by the judge's LLM."""
    swapped: float = 0.1
    """Share of the pairs that are judged again in the other order: position bias."""
    repeated: float = 0.1
    """Share of the pairs that are judged again unchanged: self-agreement."""
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
    """A judgement to be made."""

    role: str
    """``pair`` or ``example`` of an arm, or a member of ``CONTROLS`` or ``AGAIN``."""
    pair: Pair
    """Source and target are the same SAE for ``ceiling`` and ``paraphrase``."""
    arm: str
    start: int
    """Layer where the path begins. For items outside a path: the source layer."""
    path: int
    """Number among the paths that begin there; rank of an example; number of a control."""
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
    """Return the pairs to judge, which begin with the same features in every arm.

    If the pairing ``chains``, a pair continues the paths that end at its source. Otherwise each
    pair starts from features of its source. A path ends where none of its features has a partner.
    """
    items = []
    began: dict[SaeKey, int] = {}
    """Layer where the paths through an SAE begin."""
    drawn: dict[SaeKey, Fronts] = {}
    at: dict[tuple[str, SaeKey], Fronts] = {}
    for pair in matches.pairs:
        key = pair.source
        follows = chains and key in began
        if not follows and key not in drawn:
            explained = explanations.features(key)
            chosen = rng.permutation(explained)[: judging.n_paths].tolist()
            drawn[key], began[key] = begin(chosen), key.layer
            if len(chosen) < judging.n_paths:
                log.info("%s: only %d features have explanations", key.name, len(explained))
        start = began[key] if follows else key.layer
        began[pair.target] = start
        for arm in judging.arms or matches.by_arm:
            if pair not in matches.by_arm[arm]:
                continue
            fronts = at.get((arm, key), {}) if follows else drawn[key]
            steps, at[arm, pair.target] = follow(fronts, matches.by_arm[arm][pair], judging.breadth)
            items += [
                Item("pair", pair, arm, start, step.path, step.source_feature, step.target_feature)
                for step in steps
            ]
    return items


def control_items(
    matches: MatchSet, judging: Judging, explanations: Explanations, rng: np.random.Generator
) -> list[Item]:
    """Return the controls: random pairs, pairs of equal index, and features of every layer."""
    items = []
    for pair in matches.pairs:
        key = pair.source
        sources, targets = (explanations.features(k) for k in (key, pair.target))
        n = min(judging.random, len(sources)) if targets else 0
        random = rng.permutation(sources)[:n], rng.choice(targets, n)
        shared = sorted(set(sources) & set(targets))
        same = rng.permutation(shared)[: judging.identity]
        for role, *pairs in (("random", *random), ("identity", same, same)):
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
    """Return the rows of a table as items; ``path`` names the column of an item's number."""
    items = []
    began: dict[str, int] = {}
    """First layer of each suite's paths."""
    for row in rows:
        columns = (path, "source_feature", "target_feature")
        number, source, target = (int(row[name] or 0) for name in columns)
        pair = pair_of(row)
        first = began.setdefault(pair.suites, pair.source.layer)
        start = first if role == "pair" else pair.source.layer
        items.append(Item(role, pair, str(row["arm"]), start, number, source, target))
    return items

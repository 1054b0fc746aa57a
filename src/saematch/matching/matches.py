"""Match the features of every pair in every arm."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from saematch.core.cost import Cost
from saematch.core.errors import stage
from saematch.core.match import Match
from saematch.core.pairs import Pair, Refusal, SaeKey
from saematch.core.progress import progress
from saematch.core.store import is_kept
from saematch.matching.arm import Arm
from saematch.matching.matchers.matcher import PositiveMatcher
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.matching.transported import transport_refusal
from saematch.sae.sites import site_refusal, skipping_refusal
from saematch.sae.suites import SaeFacts, Saes, SaeShelf

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchSet:
    """The matches of a run."""

    pairs: tuple[Pair, ...]
    """Pairs that at least one arm has matched."""
    by_arm: dict[str, dict[Pair, Match]]
    """Matches by arm and pair, without the pairs that the arm cannot match."""
    costs: Mapping[tuple[str, Pair], Cost] = field(default_factory=dict)
    """Cost of each arm's match of a pair when it was solved, where it is known."""

    def of(self, pair: Pair) -> dict[str, Match]:
        """Return the pair's match in each arm that has one."""
        return {arm: of_arm[pair] for arm, of_arm in self.by_arm.items() if pair in of_arm}

    def only(self, pairs: Iterable[Pair]) -> MatchSet:
        """Return the matches of some pairs."""
        chosen = set(pairs)
        by_arm = {
            arm: {pair: match for pair, match in of_arm.items() if pair in chosen}
            for arm, of_arm in self.by_arm.items()
        }
        pairs = tuple(pair for pair in self.pairs if pair in chosen)
        return replace(self, pairs=pairs, by_arm=by_arm)

    @cached_property
    def hashes(self) -> dict[str, dict[Pair, str]]:
        """Hash of the entries of each match, by arm and pair."""
        return {
            arm: {pair: match.hash for pair, match in of_arm.items()}
            for arm, of_arm in self.by_arm.items()
        }


def match_pairs(
    saes: Saes,
    pairs: tuple[Pair, ...],
    arms: Mapping[str, Arm],
    store: MatchStore,
    folder: Path,
) -> MatchSet:
    """Match every pair in every arm, and save each match in ``folder/<arm>/<pair>``.

    An arm skips the pairs that ``matching_refusals`` names.
    """
    shelf = SaeShelf.of(saes)
    by_arm: dict[str, dict[Pair, Match]] = {name: {} for name in arms}
    costs: dict[tuple[str, Pair], Cost] = {}
    todo = [
        (pair, name)
        for pair in pairs
        for name, arm in arms.items()
        if _refusal(shelf.facts, pair, arm) is None
    ]
    # Arms that compose or synchronise load other layers
    todo.sort(key=lambda item: arms[item[1]].compose or arms[item[1]].synchronise is not None)
    store.share(
        shelf,
        [
            (source, target, replace(arms[name], synchronise=None))  # a direct match
            for pair, name in todo
            for source, target in pairwise(steps(shelf, pair, arms[name]))
        ],
    )
    with progress("match", len(todo), "match") as bar:
        for pair, name in todo:
            arm = arms[name]
            with stage("match", arm=name, pair=pair.label):
                layers = steps(shelf, pair, arm)
                if arm.synchronise is None:
                    match = store.chain(shelf, layers, arm)
                else:
                    match = store.synchronised(shelf, layers, arm).match(pair)
            by_arm[name][pair] = match
            if cost := store.cost(shelf, layers, arm):
                costs[name, pair] = cost
            _keep(match, arm, folder / name / f"{pair.label}.safetensors")
            bar.advance()
    log.info(store.summary())
    matched = tuple(p for p in pairs if any(p in of_arm for of_arm in by_arm.values()))
    return MatchSet(matched, by_arm, costs)


def matched_paths(
    facts: Mapping[SaeKey, SaeFacts], pairs: Iterable[Pair], arms: Mapping[str, Arm]
) -> dict[str, list[list[SaeKey]]]:
    """Return for each arm the SAEs from source to target of each pair that it matches."""
    pairs = tuple(pairs)
    return {
        name: [steps(facts, pair, arm) for pair in pairs if _refusal(facts, pair, arm) is None]
        for name, arm in arms.items()
    }


def matching_refusals(
    facts: Mapping[SaeKey, SaeFacts], pairs: Iterable[Pair], arms: Mapping[str, Arm]
) -> list[Refusal]:
    """Return the pairs that arms cannot match; one refusal if all arms have the same reason."""
    refused = []
    for pair in pairs:
        reasons = {name: _refusal(facts, pair, arm) for name, arm in arms.items()}
        shared = next(iter(reasons.values()))
        if shared is not None and set(reasons.values()) == {shared}:
            refused.append(Refusal(pair, "matching", shared))
        else:
            refused += [Refusal(pair, "matching", r, name) for name, r in reasons.items() if r]
    return refused


def steps(keys: Iterable[SaeKey], pair: Pair, arm: Arm) -> list[SaeKey]:
    """Return the SAEs from source to target whose matches the arm composes.

    An arm that synchronises matches all SAEs of the suite, in the order of layers.
    """
    if arm.synchronise is not None and pair.within_suite:
        return sorted((k for k in keys if k.suite == pair.source.suite), key=lambda k: k.layer)
    if not (arm.compose and pair.within_suite):
        return [pair.source, pair.target]
    low, high = sorted((pair.source.layer, pair.target.layer))
    between = [k for k in keys if k.suite == pair.source.suite and low <= k.layer <= high]
    return sorted(between, key=lambda k: k.layer, reverse=pair.source.layer > pair.target.layer)


def _refusal(facts: Mapping[SaeKey, SaeFacts], pair: Pair, arm: Arm) -> str | None:
    """Return why the arm cannot match the pair, None if it can."""
    if (arm.compose or arm.synchronise is not None) and not pair.within_suite:
        kind = "composed" if arm.compose else "synchronised"
        return (
            f"a {kind} match needs two layers of one suite, but {pair.source.suite} and "
            f"{pair.target.suite} are two suites"
        )
    for source, target in pairwise(steps(facts, pair, arm)):
        a, b = facts[source], facts[target]
        reason = site_refusal(a.origin, b.origin) or arm.objective.refusal(a, b)
        reason = reason or _sign_refusal(arm, a, b)
        if arm.transported:
            reason = reason or transport_refusal(a.origin, b.origin)
        if arm.reads_texts:  # a pass over texts has only hidden states between blocks
            reason = reason or skipping_refusal(a.origin) or skipping_refusal(b.origin)
        if arm.synchronise is not None and a.n_features != b.n_features:
            reason = reason or (
                f"a synchronised match needs layers of one width, but {source.name} has "
                f"{a.n_features} features and {target.name} has {b.n_features}"
            )
        if reason is not None:
            return reason
    return None


def _sign_refusal(arm: Arm, source: SaeFacts, target: SaeFacts) -> str | None:
    """Return why an arm would make no pair, since no score is positive; None if it may make some.

    ``Parts`` scores SAEs of different widths by squared distances.
    """
    needs_positive = isinstance(arm.matcher, PositiveMatcher) and arm.matcher.needs_positive
    if not (needs_positive and isinstance(arm.objective, Parts)):
        return None
    if source.n_features == target.n_features:
        return None
    return (
        "for SAEs of different widths Parts scores a pair by minus half of a squared distance, "
        f"which is never positive, so {arm.matcher!r} would make no pair: choose an objective of "
        "cosines, such as DecoderCosine, or a matcher that takes negative scores, such as "
        "Optimal without unmatched"
    )


def _keep(match: Match, arm: Arm, path: Path) -> None:
    is_new = not is_kept(path)
    if is_new or Match.load(path)[0].hash != match.hash:
        match.save(path, {"arm": repr(arm)}, keep=is_new)

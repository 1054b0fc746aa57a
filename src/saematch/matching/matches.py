"""Match the features of every pair in every arm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from saematch.core.errors import stage
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.store import is_kept
from saematch.matching.arm import Arm
from saematch.matching.store import MatchStore
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchSet:
    """The matches of a run."""

    pairs: tuple[Pair, ...]
    by_arm: dict[str, dict[Pair, Match]]

    @cached_property
    def hashes(self) -> dict[str, dict[Pair, str]]:
        """Of each match, a hash of its entries."""
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
    """Match every pair in every arm, and keep each match in ``folder/<arm>/<pair>``."""
    shelf = SaeShelf.of(saes)
    by_arm: dict[str, dict[Pair, Match]] = {name: {} for name in arms}
    todo = [(pair, name) for pair in pairs for name in arms]
    todo.sort(key=lambda each: arms[each[1]].compose)  # they load the layers between
    for pair, name in tqdm(todo, desc="match", unit="match"):
        arm = arms[name]
        first, last = pair.source.layer, pair.target.layer
        within = [k for k in shelf if pair.within_suite and k.suite == pair.source.suite]
        steps = [k for k in within if first <= k.layer <= last] if arm.compose else []
        steps = steps or [pair.source, pair.target]
        with stage("match", arm=name, pair=pair.label):
            found = store.chain(shelf, steps, arm)
        by_arm[name][pair] = found
        _keep(found, arm, folder / name / f"{pair.label}.safetensors")
    log.info(store.said())
    return MatchSet(pairs, by_arm)


def _keep(match: Match, arm: Arm, path: Path) -> None:
    if not is_kept(path) or Match.load(path)[0].hash != match.hash:
        match.save(path, {"arm": repr(arm)})

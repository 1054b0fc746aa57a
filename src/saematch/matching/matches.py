"""Match the features of every place in every arm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from saematch.core.match import Match
from saematch.core.pairs import Place, SaeKey
from saematch.matching.arm import Arm
from saematch.matching.store import MatchStore
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchSet:
    """The matches of a run."""

    places: tuple[Place, ...]
    by_arm: dict[str, dict[Place, Match]]

    @cached_property
    def hashes(self) -> dict[str, dict[Place, str]]:
        """Of each match, a hash of its entries."""
        return {
            arm: {place: match.hash for place, match in of_arm.items()}
            for arm, of_arm in self.by_arm.items()
        }


def places_of(
    sets: Sequence[str],
    layers: Sequence[int],
    starts: Sequence[int] | None,
    reach: int | None = None,
) -> tuple[Place, ...]:
    """Return what to match: each layer with the next, or each of ``starts`` with later ones.

    Of those the next ``reach``, or all.
    """
    ahead = (reach or len(layers)) if starts else 1
    later = {
        start: layers[n + 1 : n + 1 + ahead]
        for n, start in enumerate(layers)
        if not starts or start in starts
    }
    return tuple(Place(name, t, u) for name in sets for t, after in later.items() for u in after)


def match_places(
    saes: Saes,
    places: tuple[Place, ...],
    arms: Mapping[str, Arm],
    store: MatchStore,
    folder: Path,
) -> MatchSet:
    """Match every place in every arm, and keep each match in ``folder/<arm>/<place>``."""
    shelf = SaeShelf.of(saes)
    by_arm: dict[str, dict[Place, Match]] = {name: {} for name in arms}
    todo = [(place, name) for place in places for name in arms]
    todo.sort(key=lambda each: arms[each[1]].compose)  # they load the layers between
    for place, name in tqdm(todo, desc="match", unit="match"):
        arm = arms[name]
        first, last = place.layer_from, place.layer_to
        between = [SaeKey(place.saes, k.layer) for k in shelf if k.saes == place.saes]
        steps = [k for k in between if first <= k.layer <= last] if arm.compose else []
        steps = steps or [place.earlier, place.later]
        found = store.chain(shelf, steps, arm)
        by_arm[name][place] = found
        _keep(found, arm, folder / name / f"{place.label}.safetensors")
    log.info(store.said())
    return MatchSet(places, by_arm)


def _keep(match: Match, arm: Arm, path: Path) -> None:
    if not path.exists() or Match.load(path)[0].hash != match.hash:
        match.save(path, {"arm": repr(arm)})

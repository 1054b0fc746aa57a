"""Match the features of every place in every arm, and score the matches by weights alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from saematch.evals.weights import decoder_norm_change, mse
from saematch.matching.arm import Arm
from saematch.matching.match import Match
from saematch.matching.store import MatchStore
from saematch.places import Place, SaeKey
from saematch.results import Row
from saematch.sae.folding import is_uniform
from saematch.shelf import Saes, SaeShelf
from saematch.tasks.means import CERTIFICATE_METRICS

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


def match_rows(
    saes: Saes,
    matches: MatchSet,
    truth: Callable[[Place], Match | None],
    exact: Mapping[str, str],
) -> list[Row]:
    """Return the rows of the table ``matches``, without the columns that need activations.

    ``exact`` names, for each arm that composes, the arm that matches at once: the share of its
    pairs that composition finds too is ``agreement``.
    """
    return [
        row
        for place in matches.places
        for row in _rows_of(saes, matches, place, truth(place), exact)
    ]


def _rows_of(
    saes: Saes, matches: MatchSet, place: Place, known: Match | None, exact: Mapping[str, str]
) -> list[Row]:
    earlier, later = saes[place.earlier], saes[place.later]
    rows: list[Row] = []
    for arm, of_arm in matches.by_arm.items():
        match = of_arm[place]
        proof = match.certificate
        direct = matches.by_arm[exact[arm]][place] if arm in exact else None
        rows.append(
            {
                **place._asdict(),
                "arm": arm,
                **{f"mse_{part}": v for part, v in mse(earlier, later, match).items()},
                **decoder_norm_change(earlier, later, match),
                "recall": None if known is None else match.agreement(known),
                "agreement": None if direct is None else match.agreement(direct),
                **{
                    name: None if proof is None else getattr(proof, name)
                    for name in CERTIFICATE_METRICS
                },
                "n_features": match.n_from,
                "n_matched": len(match.rows),
                "uniform_threshold": is_uniform(earlier) and is_uniform(later),
            }
        )
    return rows


def live_recall(
    matches: MatchSet,
    truth: Callable[[Place], Match | None],
    fired: Callable[[SaeKey], Int64[Tensor, " n_features"]],
) -> Iterator[float | None]:
    """Yield the column ``recall_live`` in the order of ``match_rows``: recall of live features.

    A feature is live if it fired on the texts; ``fired`` returns the number of tokens for each
    feature of an SAE. None where the truth is not known or has no live feature.
    """
    for place in matches.places:
        known = truth(place)
        live = None if known is None else known.keep(fired(place.earlier)[known.rows] > 0)
        for of_arm in matches.by_arm.values():
            yield of_arm[place].agreement(live) if live is not None and len(live.rows) else None


def exact_arms(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return, for each arm that composes, an arm that differs from it in nothing else."""
    return {
        name: other
        for name, arm in arms.items()
        if arm.compose
        for other, direct in arms.items()
        if replace(arm, compose=False, decode=(), quantiles=())
        == replace(direct, decode=(), quantiles=())
    }

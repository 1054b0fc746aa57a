"""Match the features of every layer pair in every arm, and score the matches by weights alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from saematch.evals.weights import mse
from saematch.matching.arm import Arm
from saematch.matching.match import Match
from saematch.results import Row
from saematch.sae.folding import is_uniform
from saematch.sae.params import SaeParams

log = logging.getLogger(__name__)

Pair = tuple[int, int]


@dataclass(frozen=True)
class MatchSet:
    """The matches of a run."""

    pairs: tuple[Pair, ...]
    by_arm: dict[str, tuple[Match, ...]]
    """One match a pair."""
    keys: dict[str, tuple[str, ...]]
    """Of each match, a hash of all that determines it."""


def match_layers(
    saes: Mapping[int, SaeParams], pairs: tuple[Pair, ...], arms: Mapping[str, Arm], folder: Path
) -> MatchSet:
    """Match every pair in every arm; a match that ``folder`` holds already is not solved again."""
    by_arm: dict[str, list[Match]] = {name: [] for name in arms}
    keys: dict[str, list[str]] = {name: [] for name in arms}
    found = 0
    todo = [(pair, name) for pair in pairs for name in arms]
    for (earlier, later), name in tqdm(todo, desc="match", unit="match"):
        arm = arms[name]
        key = match_key(saes[earlier], saes[later], arm)
        path = folder / name / f"{earlier}-{later}.safetensors"
        match = _stored(path, key)
        if match is None:
            match = arm.match(saes[earlier], saes[later])
            match.save(path, {"key": key, "arm": repr(arm)})
        else:
            found += 1
        by_arm[name].append(match)
        keys[name].append(key)
    if found:
        log.info("%d of %d matches were solved before and taken from %s", found, len(todo), folder)
    return MatchSet(
        pairs,
        {name: tuple(matches) for name, matches in by_arm.items()},
        {name: tuple(of_arm) for name, of_arm in keys.items()},
    )


def match_key(earlier: SaeParams, later: SaeParams, arm: Arm) -> str:
    """Return a hash of everything that determines a match."""
    parts = [repr(earlier.origin), repr(later.origin), arm.fold, arm.objective, arm.assignment]
    return hashlib.sha256(json.dumps([repr(part) for part in parts]).encode()).hexdigest()[:24]


def _stored(path: Path, key: str) -> Match | None:
    if not path.exists():
        return None
    match, about = Match.load(path)
    return match if about.get("key") == key else None


def match_rows(
    saes: Mapping[int, SaeParams], matches: MatchSet, truths: Iterable[Match | None]
) -> list[Row]:
    """Return the rows of the table ``matches``, without the columns that need activations."""
    rows: list[Row] = []
    for place, ((earlier, later), truth) in enumerate(zip(matches.pairs, truths, strict=True)):
        for arm, of_arm in matches.by_arm.items():
            match = of_arm[place]
            errors = mse(saes[earlier], saes[later], match)
            proof = match.certificate
            rows.append(
                {
                    "layer_from": earlier,
                    "layer_to": later,
                    "arm": arm,
                    **{f"mse_{part}": value for part, value in errors.items()},
                    "recall": None if truth is None else match.agreement(truth),
                    "value": proof.value if proof else None,
                    "bound": proof.bound if proof else None,
                    "gap": proof.gap if proof else None,
                    "n_features": match.n_from,
                    "n_matched": len(match.rows),
                    "uniform_threshold": is_uniform(saes[earlier]) and is_uniform(saes[later]),
                }
            )
    return rows

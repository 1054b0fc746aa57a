"""Runs that must not be mixed: made by other code, or of other SAEs, models or texts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from saematch.compare.runs import RunFolder
from saematch.core.errors import InputError
from saematch.core.results import Results

Facts = Mapping[str, str]
"""What a run rests on, by name."""


def keep_comparable(runs: Sequence[RunFolder], code: str | None) -> list[RunFolder]:
    """Give a reason to each run that must not be compared with the others.

    The side with the most runs is kept, of equal ones the newest; ``code`` is the beginning of the
    hash of the code to keep instead. ``InputError`` if there is no such code.
    """
    runs = _of_one_code(runs, code)
    for what, chosen_by, facts in (
        ("source code", lambda _: None, _specs),
        ("SAE", _sae_settings, _saes),
        ("model", lambda results: [results.config.get("model")], _model),
        ("text set", _text_settings, _texts),
    ):
        groups = defaultdict(list)
        for run in compared(runs):
            assert run.results is not None
            groups[json.dumps(chosen_by(run.results), sort_keys=True)].append(run)
        left_out: dict[RunFolder, str] = {}
        for group in groups.values():
            left_out |= _odd_ones(group, what, facts)
        runs = [replace(run, reason=left_out.get(run, run.reason)) for run in runs]
    return list(runs)


def compared(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs that nothing speaks against."""
    return [run for run in runs if not run.reason]


def code_of(results: Results) -> str:
    """Return the hash of the code that made the numbers."""
    return str(results.provenance.get("code", "unknown"))


def _of_one_code(runs: Sequence[RunFolder], code: str | None) -> list[RunFolder]:
    by_code: dict[tuple[str, ...], list[RunFolder]] = defaultdict(list)
    for run in compared(runs):
        by_code[_made_by(run)].append(run)
    if not by_code:
        return list(runs)
    sides = {made: of for made, of in by_code.items() if made[0].startswith(code or "")}
    if not sides:
        there = ", ".join(dict.fromkeys(made[0] for made in by_code))
        raise InputError(f"no run was made by the code {code}; there are runs of {there}")
    kept = max(sides, key=lambda made: _weight(sides[made]))
    n = len(sides[kept])
    return [
        run if run.reason or _made_by(run) == kept else replace(run, reason=_other(run, kept, n))
        for run in runs
    ]


def _made_by(run: RunFolder) -> tuple[str, ...]:
    assert run.results is not None
    versions = run.results.provenance.get("versions", {})
    packages = (f"{name} {versions.get(name, 'unknown')}" for name in ("torch", "transformers"))
    return code_of(run.results), *packages


def _other(run: RunFolder, kept: Sequence[str], n: int) -> str:
    theirs = ("code " + kept[0][:8], *kept[1:])
    made = _made_by(run)
    own = ("code " + made[0][:8], *made[1:])
    pairs = [(mine, other) for mine, other in zip(own, theirs, strict=True) if mine != other]
    mine, other = (", ".join(side) for side in zip(*pairs, strict=True))
    return f"it was made by {mine}; the {n} compared by {other}"


def _weight(side: Sequence[RunFolder]) -> tuple[int, float]:
    return len(side), max(run.saved_at for run in side)


def _odd_ones(
    group: Sequence[RunFolder], what: str, facts: Callable[[Results], Facts]
) -> dict[RunFolder, str]:
    """Return why runs are left out of which one fact is not as in most of the group."""
    of_run = {run: facts(run.results) for run in group if run.results is not None}
    kept, left_out = list(group), {}
    for name in dict.fromkeys(name for known in of_run.values() for name in known):
        sides: dict[str, list[RunFolder]] = defaultdict(list)
        for run in kept:
            if name in of_run[run]:
                sides[of_run[run][name]].append(run)
        most = max(sides, key=lambda fact: _weight(sides[fact]), default="")
        for fact, side in sides.items():
            if fact != most:
                why = (
                    f"its {what} {name} is another one ({fact}; in {len(sides[most])} runs {most})"
                )
                left_out |= dict.fromkeys(side, f"{why}, though the settings are equal")
        kept = [run for run in kept if run not in left_out]
    return left_out


def _specs(results: Results) -> Facts:
    """Return the hashes of the code of matchers and other specs: runs may share some of them."""
    specs = results.provenance.get("specs", {})
    return {f"of {name}": code[:8] for name, code in specs.items()}


def _sae_settings(results: Results) -> list[Any]:
    config = results.config
    chosen = [config.get(name) for name in ("sae", "selection", "stand_in")]
    as_released = str((config.get("selection") or {}).get("_target_", "")).endswith("AsReleased")
    return chosen if as_released else [*chosen, config.get("layers")]  # others look at all layers


def _saes(results: Results) -> Facts:
    names = ("release", "sae_id", "revision", "site")  # a stand-in also depends on texts
    return {
        f"of layer {layer}": " ".join(str(origin[name]) for name in names if origin.get(name))
        for layer, origin in results.provenance.get("saes", {}).items()
    }


def _model(results: Results) -> Facts:
    revision = results.provenance.get("model", {}).get("revision")  # None if none was loaded
    return {} if revision is None else {"": str(revision)}


_DRAWN = ("n_texts", "n_special", "max_tokens", "seed")
"""Settings that choose among the texts of a set, and what depends on the choice."""


def _text_settings(results: Results) -> list[Any]:
    dataset = results.config.get("dataset") or {}
    return [{name: value for name, value in dataset.items() if name not in _DRAWN}]


def _texts(results: Results) -> Facts:
    return {
        name: ", ".join(f"{k} {v}" for k, v in known.items() if k not in _DRAWN)
        for name, known in results.provenance.get("texts", {}).items()
    }

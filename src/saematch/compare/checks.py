"""Exclusion of runs with different code, SAEs, models or texts."""

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
"""Properties of a run's inputs, by name."""


def keep_comparable(runs: Sequence[RunFolder], code: str | None) -> list[RunFolder]:
    """Return the runs, each with a reason if it must not be compared with the others.

    If groups of runs conflict, the comparison keeps the largest group, or the newest of equally
    large ones. ``code`` is the beginning of the hash of the code to keep instead. Raises
    ``InputError`` if no run has this code.
    """
    runs = _of_one_code(runs, code)
    for kind, settings, facts in (
        ("source code", lambda _: None, _specs),
        ("SAE", _sae_settings, _saes),
        ("model", lambda results: [results.config.get("model")], _model),
        ("text set", _text_settings, _texts),
    ):
        groups = defaultdict(list)
        for run in compared(runs):
            assert run.results is not None
            groups[json.dumps(settings(run.results), sort_keys=True)].append(run)
        left_out: dict[RunFolder, str] = {}
        for group in groups.values():
            left_out |= _differing(group, kind, facts)
        runs = [replace(run, reason=left_out.get(run, run.reason)) for run in runs]
    return list(runs)


def compared(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs that have no reason to be excluded."""
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
    groups = {
        version: of_code
        for version, of_code in by_code.items()
        if version[0].startswith(code or "")
    }
    if not groups:
        existing = ", ".join(dict.fromkeys(version[0] for version in by_code))
        raise InputError(f"no run was made by the code {code}; there are runs of {existing}")
    kept = max(groups, key=lambda version: _weight(groups[version]))
    n = len(groups[kept])
    return [
        run
        if run.reason or _made_by(run) == kept
        else replace(run, reason=_version_reason(run, kept, n))
        for run in runs
    ]


def _made_by(run: RunFolder) -> tuple[str, ...]:
    assert run.results is not None
    versions = run.results.provenance.get("versions", {})
    packages = (f"{name} {versions.get(name, 'unknown')}" for name in ("torch", "transformers"))
    return code_of(run.results), *packages


def _version_reason(run: RunFolder, kept: Sequence[str], n: int) -> str:
    """Return how a run's code and packages differ from those of the ``n`` runs that are kept."""
    versions = [("code " + version[0][:8], *version[1:]) for version in (_made_by(run), kept)]
    differing = [names for names in zip(*versions, strict=True) if len(set(names)) > 1]
    excluded, compared = (", ".join(names) for names in zip(*differing, strict=True))
    return f"it was made by {excluded}; the {n} compared by {compared}"


def _weight(group: Sequence[RunFolder]) -> tuple[int, float]:
    return len(group), max(run.saved_at for run in group)


def _differing(
    group: Sequence[RunFolder], kind: str, facts: Callable[[Results], Facts]
) -> dict[RunFolder, str]:
    """Return the runs that differ in a fact from most of the group, each with the reason."""
    of_run = {run: facts(run.results) for run in group if run.results is not None}
    kept = list(group)
    left_out: dict[RunFolder, str] = {}
    for name in dict.fromkeys(name for of_one in of_run.values() for name in of_one):
        by_fact: dict[str, list[RunFolder]] = defaultdict(list)
        for run in kept:
            if name in of_run[run]:
                by_fact[of_run[run][name]].append(run)
        most = max(by_fact, key=lambda fact: _weight(by_fact[fact]), default="")
        for fact, odd in by_fact.items():
            if fact != most:
                n = len(by_fact[most])
                reason = f"its {kind} {name} differs ({fact}; in {n} runs {most})"
                left_out |= dict.fromkeys(odd, f"{reason}, though the settings are equal")
        kept = [run for run in kept if run not in left_out]
    return left_out


def _specs(results: Results) -> Facts:
    """Return the hashes of the code of matchers and other specs, which runs may share."""
    specs = results.provenance.get("specs", {})
    return {f"of {name}": code[:8] for name, code in specs.items()}


def _sae_settings(results: Results) -> list[Any]:
    config = results.config
    chosen = [config.get(name) for name in ("sae", "selection", "stand_in")]
    as_released = str((config.get("selection") or {}).get("_target_", "")).endswith("AsReleased")
    return (
        chosen if as_released else [*chosen, config.get("layers")]
    )  # other selections depend on all layers


def _saes(results: Results) -> Facts:
    names = ("release", "sae_id", "revision", "site")  # stand-ins also depend on texts
    return {
        f"of layer {layer}": " ".join(str(origin[name]) for name in names if origin.get(name))
        for layer, origin in results.provenance.get("saes", {}).items()
    }


def _model(results: Results) -> Facts:
    model = results.provenance.get("model", {})
    revision = model.get("revision")  # None if none was loaded
    if revision is None:
        return {}
    by_device = (results.config.get("model") or {}).get("dtype") == "auto"
    return {"": f"{revision} in {model['dtype']}" if by_device else str(revision)}


_DRAWN = ("n_texts", "n_special", "n_calibration", "n_evaluation", "max_tokens", "seed")
"""Settings that choose texts of a set, and properties that depend on the choice."""


def _text_settings(results: Results) -> list[Any]:
    dataset = results.config.get("dataset") or {}
    return [{name: value for name, value in dataset.items() if name not in _DRAWN}]


def _texts(results: Results) -> Facts:
    return {
        name: ", ".join(f"{k} {v}" for k, v in properties.items() if k not in _DRAWN)
        for name, properties in results.provenance.get("texts", {}).items()
    }

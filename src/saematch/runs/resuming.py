"""Check whether a folder contains the same run, which can continue, or another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saematch.core.errors import InputError
from saematch.core.files import read_json
from saematch.core.results import Results


def finished_as(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder contains a finished run with these settings."""
    path = folder / "results.json"
    if not path.exists() or not (folder / "run.json").exists():
        return False
    return Results.load(path).status == "finished" and _settings_in(folder) == settings_of(config)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that distinguish a run from others."""
    return {
        k: v
        for k, v in _flat(config).items()
        if not (k.startswith(_NOT_COMPARED + _ACCESS) or k.endswith(_EMBEDDING_ACCESS))
    }


_NOT_COMPARED = ("logger", "run_id", "cache", "figures", "sae_memory", "overrides", "choices")
_ACCESS = tuple(
    f"{judge}.{name}"
    for judge in ("judge", "second_judge")
    for name in ("limits", "base_url", "key_variable", "price", "batch", "cached_only")
) + tuple(f"explain.{name}" for name in ("timeout", "retries", "connections", "refresh"))
"""Settings for access to judge and explanations, and for its cost. A run can continue with other
values."""
_EMBEDDING_ACCESS = tuple(
    f".embedding.{name}"
    for name in ("base_url", "key_variable", "batch_size", "concurrency", "retries", "timeout")
)
"""Ends of settings for access to a model of embeddings, in objectives and evaluations."""


def refuse_other_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ``InputError`` if the folder contains a run with other settings.

    Raises ``SchemaError`` for results of another schema.
    """
    if not (folder / "run.json").exists():
        return
    if (folder / "results.json").exists():
        Results.load(folder / "results.json")
    existing = _settings_in(folder)
    differing = [k for k in settings.keys() | existing.keys() if settings.get(k) != existing.get(k)]
    if differing:
        differing.sort(key=lambda k: (k.count("."), k))
        shown = "; ".join(f"{k}: {existing.get(k)} -> {settings.get(k)}" for k in differing[:4])
        raise InputError(
            f"{folder} contains a run with other settings ({shown}); choose another run_id, or "
            "the same settings to continue it"
        )


def _settings_in(folder: Path) -> dict[str, Any]:
    return read_json(folder / "run.json", dict, "choose another run_id")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf
        for inner, part in value.items()
        for key, leaf in _flat(part, f"{name}.{inner}" if name else str(inner)).items()
    }

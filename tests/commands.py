"""The command line in a process of its own."""

import json
import sys
from pathlib import Path

from conftest import tiny_overrides


def command(tiny: Path, *arguments: str) -> list[str]:
    """Run the tiny model with these arguments, which go first: Hydra takes options only there."""
    settings = tiny_overrides(tiny)
    return [sys.executable, "-m", "saematch", *arguments, *settings, "logger=none"]


def tables(folder: Path) -> dict:
    """Return the tables of a run that has finished."""
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    return results["tables"]

"""The commands of saematch besides runs: name, purpose, and the module whose ``main`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """A command of the command line."""

    usage: str
    """Arguments, for the help."""
    purpose: str
    module: str
    """Module in ``saematch.app`` whose ``main`` receives the words after the command."""

    def __call__(self, words: Sequence[str]) -> None:
        """Do the command."""
        import_module(f"saematch.app.{self.module}").main(words)


COMMANDS = {
    "show": Command("RUN", "write the page of a run, to follow its features", "show"),
    "features": Command("RUN LAYER FEATURE", "print a feature's path, partners and effects",
                        "features"),
    "export": Command("RUN FORMAT", "write matched features for other tools",
                      "export"),
    "compare": Command("RUN...", "compare runs: a table, figures and a page", "compare"),
    "reproduce": Command("", "run the paper's experiments and compare them with the paper",
                         "reproduce"),
    "sweep": Command("FILE", "do the runs of a W&B sweep file, then compare them",
                     "sweep.command"),
    "spread": Command("-n N", "do one run on several processes or machines", "spread"),
    "experiments": Command("", "list the experiments for +experiment=NAME", "experiments"),
    "saes": Command("[WORDS]", "list released SAEs and the settings that load them", "saes"),
    "metrics": Command("[RUN]", "list the metrics and their definitions", "metrics"),
}  # fmt: skip

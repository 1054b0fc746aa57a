"""Printing of released SAEs for ``saematch saes``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

MAX_RELEASES = 10
"""Number of releases in a listing without ``--all``."""

WITHOUT_MODEL = (
    "Settings without model= or setting=: there is no preset of the model. Add model=local "
    "model.path=REPOSITORY model.name=MODEL, or match by weights alone with evaluations=[]."
)
"""Remark on a listing."""


class Line(NamedTuple):
    """A release in the listing."""

    release: str
    model: str
    site: str
    kind: str
    """Architecture; empty if only the files show it."""
    layers: str
    """Layers of each width."""
    mean_l0: str
    explained: str
    """Number of its SAEs that Neuronpedia explains, or ``all``."""
    settings: str
    """Settings of the command line that choose the release."""


def print_releases(lines: Sequence[Line], whole: bool) -> None:
    """Print releases by model: what each has, and the settings that choose it.

    Without ``whole``, only the first ``MAX_RELEASES`` are printed.
    """
    console = _console()
    shown = lines if whole else lines[:MAX_RELEASES]
    model = ""
    for line in shown:
        if line.model != model:
            model = line.model
            console.print(f"\n[bold]{escape(model)}[/]", highlight=False)
        facts = filter(None, (
            line.site, line.kind, line.layers and f"layers {line.layers}",
            line.mean_l0 and f"mean L0 {line.mean_l0}",
            line.explained and f"explained: {line.explained}",
        ))  # fmt: skip
        console.print(f"  [bold]{escape(line.release)}[/]", highlight=False, soft_wrap=True)
        console.print(
            Padding(escape("; ".join(facts)), (0, 0, 0, 4), expand=False), highlight=False
        )
        if line.settings:
            console.print(f"    {line.settings}", style="dim", highlight=False, soft_wrap=True,
                          markup=False)  # fmt: skip
    if any(not line.settings.startswith(("setting=", "model=")) for line in shown):
        console.print(f"\n{WITHOUT_MODEL}", highlight=False)
    if len(shown) < len(lines):
        console.print(
            f"\n{len(lines) - len(shown)} more releases: add words, or --all", highlight=False
        )


def print_release(line: Line, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print all SAEs of a release by layer."""
    console = _console()
    description = ", ".join(filter(None, (line.model, line.site, line.kind)))
    console.print(f"\n[bold]{line.release}[/] ({description})", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("layer", "id", "mean L0", "explained as"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell or "–" for cell in row))
    console.print(table)
    _print_settings(console, line)


def _print_settings(console: Console, line: Line) -> None:
    settings = line.settings or "none: its ids name no layer"
    console.print(f"{line.release}: {settings}", highlight=False, soft_wrap=True, markup=False)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=160)

"""Printing of released SAEs for ``saematch saes``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

HEADS = ("release", "model", "site", "kind", "layers of each width", "mean L0", "explained")


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


def print_releases(lines: Sequence[Line], with_settings: bool) -> None:
    """Print one release a line, then the settings that choose each release."""
    console = _console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in HEADS:
        table.add_column(head, overflow="fold")  # a truncated name is useless
    for line in lines:
        table.add_row(line.release, *(cell or "–" for cell in line[1 : len(HEADS)]))
    console.print(table)
    if with_settings:
        console.print("\n[bold]Settings[/]", highlight=False)
        for line in lines:
            _print_settings(console, line)


def print_release(line: Line, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print all SAEs of a release by layer."""
    console = _console()
    description = ", ".join(filter(None, (line.model, line.site, line.kind)))
    console.print(f"\n[bold]{line.release}[/] ({description})", highlight=False, soft_wrap=True)
    table = Table(
        "layer", "id", "mean L0", "explained as", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        show_edge=False,
    )  # fmt: skip
    for row in rows:
        table.add_row(*(cell or "–" for cell in row))
    console.print(table)
    _print_settings(console, line)


def _print_settings(console: Console, line: Line) -> None:
    settings = line.settings or "none: its ids name no layer"
    console.print(f"{line.release}: {settings}", highlight=False, soft_wrap=True, markup=False)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)

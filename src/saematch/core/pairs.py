"""Where a match stands: which SAEs, from which layer to which."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT = "default"
"""Name of the set of SAEs of a run that has only one."""

NO_ARM = "none"
"""Stands in the arm's place for a strategy that uses no match."""

POOLED = "all"
"""Name of all data sets together; an interval over them varies the texts of each set apart."""


class SaeKey(NamedTuple):
    """One SAE of a run."""

    saes: str
    """Name of the set that the SAE belongs to: one SAE a layer."""
    layer: int


class Place(NamedTuple):
    """Two layers of one set of SAEs."""

    saes: str
    layer_from: int
    layer_to: int

    @property
    def earlier(self) -> SaeKey:
        """The SAE of the earlier layer."""
        return SaeKey(self.saes, self.layer_from)

    @property
    def later(self) -> SaeKey:
        """The SAE of the later layer."""
        return SaeKey(self.saes, self.layer_to)

    @property
    def label(self) -> str:
        """The place in a file's name: ``3-4``, or ``l0_20/3-4`` in a run with several sets."""
        layers = f"{self.layer_from}-{self.layer_to}"
        return layers if self.saes == DEFAULT else f"{self.saes}/{layers}"

"""What is compared: single SAEs of a run, and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

DEFAULT = "default"
"""Name of the suite of a run that has only one."""

NO_ARM = "none"
"""Stands in the arm's place for a strategy that uses no match."""

POOLED = "all"
"""Name of all data sets together; an interval over them varies the texts of each set apart."""


class SaeKey(NamedTuple):
    """One SAE of a run."""

    suite: str
    """Name of the suite that the SAE belongs to: one SAE a layer."""
    layer: int

    @property
    def name(self) -> str:
        """The SAE in messages: ``layer 3``, or ``layer 3 of wide`` outside the default suite."""
        return f"layer {self.layer}" + ("" if self.suite == DEFAULT else f" of {self.suite}")


class Pair(NamedTuple):
    """Two SAEs that are compared. They may differ in layer, suite, width and language model."""

    source: SaeKey
    target: SaeKey

    @classmethod
    def of_layers(cls, source: int, target: int, suite: str = DEFAULT) -> Pair:
        """Return the pair of two layers of one suite."""
        return cls(SaeKey(suite, source), SaeKey(suite, target))

    @property
    def suites(self) -> str:
        """The suites in a name: ``wide``, or ``default-wide`` if source and target are of two."""
        return suites_label(self.source.suite, self.target.suite)

    @property
    def label(self) -> str:
        """The pair in a file's name: ``3-4``, or ``wide/3-4`` outside the default suite."""
        layers = f"{self.source.layer}-{self.target.layer}"
        return layers if self.suites == DEFAULT else f"{self.suites}/{layers}"

    @property
    def within_suite(self) -> bool:
        """Whether source and target belong to one suite."""
        return self.source.suite == self.target.suite

    def columns(self) -> dict[str, str | int | float | bool | None]:
        """Return the columns that name the pair in every table of pairs."""
        return dict(zip(PAIR_COLUMNS, (*self.source, *self.target), strict=True))


class Refusal(NamedTuple):
    """What a run does not do for one pair, and why."""

    pair: Pair
    evaluation: str
    """``matching``, or the evaluation that leaves the pair out."""
    reason: str
    arm: str | None = None
    """The arm that cannot match the pair; None if the refusal does not depend on the arm."""

    def row(self) -> dict[str, str | int | float | bool | None]:
        """Return the row of the table ``refused``."""
        return {
            **self.pair.columns(),
            "evaluation": self.evaluation,
            "arm": self.arm,
            "reason": self.reason,
        }


PAIR_COLUMNS = ("source_suite", "source_layer", "target_suite", "target_layer")
SUITE_COLUMNS = ("source_suite", "target_suite")
OF_DEFAULT = dict.fromkeys(SUITE_COLUMNS, DEFAULT)
"""Values that choose the rows of the default suite."""


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return the pair that a row of a table is about."""
    source_suite, source_layer, target_suite, target_layer = (row[name] for name in PAIR_COLUMNS)
    return Pair(SaeKey(source_suite, source_layer), SaeKey(target_suite, target_layer))


def suites_label(source: str, target: str) -> str:
    """Return the one suite's name, or both names if they are two."""
    return source if source == target else f"{source}-{target}"


def suites_of(row: Mapping[str, Any]) -> str:
    """Return the suites that a row of a table is about, as ``suites_label`` names them."""
    return suites_label(*(str(row[name]) for name in SUITE_COLUMNS))

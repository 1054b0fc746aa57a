"""The SAEs of a run and the pairs of SAEs that it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

DEFAULT = "default"
"""Name of the suite of a run that has only one."""

NO_ARM = "none"
"""Name of the arm in rows of a strategy that uses no match."""

POOLED = "all"
"""Name of all data sets together; replicates leave out texts within each set."""


class SaeKey(NamedTuple):
    """One SAE of a run."""

    suite: str
    """Name of the suite that the SAE belongs to. A suite has one SAE per layer."""
    layer: int

    @property
    def name(self) -> str:
        """Name in messages: ``layer 3``, or ``layer 3 of wide`` outside the default suite."""
        return f"layer {self.layer}" + ("" if self.suite == DEFAULT else f" of {self.suite}")

    @property
    def label(self) -> str:
        """Name in file names: ``3``, or ``wide/3`` outside the default suite."""
        return str(self.layer) if self.suite == DEFAULT else f"{self.suite}/{self.layer}"


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
        """Name of the suites: ``wide``, or ``default-wide`` if source and target belong to two
        suites."""
        return suites_label(self.source.suite, self.target.suite)

    @property
    def label(self) -> str:
        """Name in file names: ``3-4``, or ``wide/3-4`` outside the default suite."""
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
    """An evaluation that a run skips for one pair, and the reason."""

    pair: Pair
    evaluation: str
    """``matching``, or the evaluation that skips the pair."""
    reason: str
    arm: str | None = None
    """Arm that cannot match the pair; None if the refusal does not depend on the arm."""

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
"""Column values that select the rows of the default suite."""


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return the pair in a row of a table."""
    source_suite, source_layer, target_suite, target_layer = (row[name] for name in PAIR_COLUMNS)
    return Pair(SaeKey(source_suite, source_layer), SaeKey(target_suite, target_layer))


def suites_label(source: str, target: str) -> str:
    """Return the suite's name, or both names if source and target differ in suite."""
    return source if source == target else f"{source}-{target}"


def suites_of(row: Mapping[str, Any]) -> str:
    """Return the suites in a row of a table, named as by ``suites_label``."""
    return suites_label(*(str(row[name]) for name in SUITE_COLUMNS))


def layers_text(layers: Sequence[int]) -> str:
    """Return ``layer 3``, ``layers 2 to 4`` or ``layers 0, 2, 5``."""
    ordered = sorted(set(layers))
    if len(ordered) == 1:
        return f"layer {ordered[0]}"
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"layers {ordered[0]} to {ordered[-1]}"
    return f"layers {', '.join(map(str, ordered))}"

"""Definitions of metrics, which tables, figures, terminal and comparisons read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from saematch.core.errors import InputError


@dataclass(frozen=True)
class Column:
    """A metric: a column of tables, and a name among the flat metrics of a run.

    Each evaluation defines its metrics, and ``results.json`` repeats the definitions.
    """

    name: str
    label: str
    """Name in figures and headings."""
    better: str | None = None
    """Whether ``higher`` or ``lower`` values are better; None if neither."""
    unit: str = ""
    least: float = -math.inf
    """Least possible value; intervals do not go below it, nor above ``greatest``."""
    greatest: float = math.inf
    interval: bool = False
    """Whether tables have the ends of its interval, as ``<name>_low`` and ``<name>_high``."""
    logged: tuple[str, ...] = ()
    """Tables from which the metric is logged by layer; they have the column ``target_layer`` or
    ``layer``. Runs are compared by the mean of the metric over pairs if it is logged from
    ``matches``, or if ``Measures.row`` computed it for ``strategies``."""
    meaning: str = ""
    """Phrase that defines the metric."""

    def __post_init__(self) -> None:
        if isinstance(self.logged, str):
            raise InputError(
                f"metric {self.name}: logged={self.logged!r} must be a tuple of names of tables, "
                f"as ({self.logged!r},)"
            )
        if self.better not in ("higher", "lower", None):
            raise InputError(
                f"metric {self.name}: better={self.better!r} must be 'higher', 'lower' or None"
            )

    @property
    def with_unit(self) -> str:
        """Label, with the unit in brackets if there is one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def difference(self) -> Column:
        """Column of differences between two values of this metric."""
        return replace(
            self, name=f"{self.name}_difference", label=f"difference in {self.label}",
            least=-math.inf, greatest=math.inf, logged=(),
        )  # fmt: skip


def share(
    name: str, label: str, meaning: str, interval: bool = False, logged: tuple[str, ...] = ()
) -> Column:
    """Return the definition of a share, which lies between 0 and 1 and is better if higher."""
    return Column(name, label, "higher", "", 0.0, 1.0, interval, logged, meaning)


EXPLAINED_VARIANCE = Column(
    "explained_variance", "explained variance", "higher", greatest=1.0, interval=True,
    logged=("strategies", "saes"),
    meaning="1 - Var(x_hat - x) / Var(x), variances over tokens summed over coordinates",
)  # fmt: skip
"""Explained variance of replaced hidden states, and of an SAE's reconstructions."""

"""What a metric is: the one definition that tables, figures, terminal and comparisons read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Column:
    """A metric: a column of tables, and a name among the flat metrics of a run.

    Each evaluation defines its metrics, and ``results.json`` repeats the definitions.
    """

    name: str
    label: str
    """Name in figures and headings."""
    better: str | None = None
    """``higher``, ``lower``, or None for what is neither good nor bad."""
    unit: str = ""
    least: float = -math.inf
    """Least value that the metric can have; an interval ends there."""
    greatest: float = math.inf
    interval: bool = False
    """Whether tables have the ends of its interval, as ``<name>_low`` and ``<name>_high``."""
    logged: tuple[str, ...] = ()
    """Tables from which it is logged against the layer. Runs are compared by its mean over pairs
    if that is ``matches`` or ``strategies``."""
    meaning: str = ""
    """One sentence that defines it."""

    @property
    def with_unit(self) -> str:
        """The label and, in brackets, the unit, if there is one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def difference(self) -> Column:
        """The column of differences between two values of this metric."""
        return replace(
            self, name=f"{self.name}_difference", label=f"difference in {self.label}",
            least=-math.inf, greatest=math.inf, logged=(),
        )  # fmt: skip


def share(name: str, label: str, meaning: str = "", **fields: bool | tuple[str, ...]) -> Column:
    """Return the definition of a share, which lies between 0 and 1 and is better if higher."""
    return Column(name, label, "higher", "", 0.0, 1.0, meaning=meaning, **fields)  # type: ignore[arg-type]


EXPLAINED_VARIANCE = Column(
    "explained_variance", "explained variance", "higher", greatest=1.0, interval=True,
    logged=("strategies", "saes"),
    meaning="1 - Var(x_hat - x) / Var(x), variances over tokens summed over coordinates",
)  # fmt: skip
"""Of replaced hidden states and of an SAE's reconstructions."""


# Transitional: each evaluation will define its metrics, and readers take them from Tables
def _share(name: str, label: str) -> Column:
    return Column(name, label, "higher", least=0.0, greatest=1.0)


COLUMNS = {
    column.name: column
    for column in (
        Column("explained_variance", "explained variance", "higher", greatest=1.0),
        Column("delta_loss", "change in loss", "lower", "nats"),
        Column("loss", "loss", "lower", "nats", least=0.0),
        _share("matching_score", "matching score"),
        _share("matching_score_entries", "matching score of single entries"),
        _share("matching_score_live", "matching score over features whose partner fired"),
        _share("matching_score_matched", "matching score over features with a partner"),
        _share("matching_score_macro", "matching score, mean over features"),
        _share("jaccard", "Jaccard index"),
        _share("recall", "recall of the hidden permutation"),
        _share("recall_live", "recall over features that fired"),
        _share("agreement", "pairs shared with the match at once"),
        Column("mse_W_enc", "mean squared error of W_enc, folded", "lower", least=0.0),
        Column("mse_b_enc", "mean squared error of b_enc, folded", "lower", least=0.0),
        Column("mse_W_dec", "mean squared error of W_dec, folded", "lower", least=0.0),
        Column("decoder_norm_change", "change of the folded decoder norm"),
        Column("value", "value of the match", "higher"),
        Column("bound", "upper bound on the value"),
        Column("chance", "value of a random match"),
        Column("gap", "relative gap", "lower", least=0.0),
        Column("gap_over_chance", "gap over chance", "lower", least=0.0),
        Column("n_90", "pairs that carry 90 % of the value over chance", unit="pairs", least=0.0),
        _share("certain", "share of pairs in every optimal match"),
        Column("judge_score", "judge score", "higher", least=1.0, greatest=3.0),
        _share("same_share", "share of SAME"),
        Column("kappa", "Cohen's kappa", "higher", least=-1.0, greatest=1.0),
        Column("mean_l0", "mean L0", least=0.0),
        Column("mean_norm", "mean norm of the hidden states", least=0.0),
    )
}
"""Every metric of the product, by name."""


def column_of(name: str) -> Column:
    """Return the definition of a metric; a name that has none, as a difference, is its label."""
    return COLUMNS.get(name, Column(name, name))

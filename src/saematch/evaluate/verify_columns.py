"""Definitions of the metrics of the evaluation ``verify``."""

from __future__ import annotations

from typing import Any

from saematch.core.columns import Column, share

_MEASURED: Any = {"interval": True, "logged": ("matches",)}
OFF_RATE = share(
    "off_rate", "off rate",
    "share of events in which removing the source feature switches off a partner", **_MEASURED,
)  # fmt: skip
EFFECT = Column(
    "effect", "effect", "higher", "", -1.0, 1.0, **_MEASURED,
    meaning="mean over events of D = clip(1 - z'/z, -1, 1) of a partner with activation z before "
    "and z' after removing the source feature, 0 if z = 0; of several partners the largest",
)  # fmt: skip
OFF_RATE_ACTIVE = share(
    "off_rate_active", "off rate of active partners",
    "off rate in events in which a partner was active", interval=True,
)  # fmt: skip
MASS = share(
    "mass", "mass",
    "mean over events of the partners' share of the activation that all target features lost",
    interval=True,
)  # fmt: skip
COVERAGE = share(
    "coverage", "coverage", "share of events in which a partner was active", interval=True
)
CONTROLLED = (EFFECT, OFF_RATE, MASS)
"""Metrics that are also computed for random partners."""


def _of_random(column: Column) -> Column:
    return Column(
        f"{column.name}_random", f"{column.label} of random targets", None, "", column.least,
        column.greatest,
        meaning=f"{column.label} of as many random targets of the partners' deciles of activity",
    )  # fmt: skip


def _over_random(column: Column) -> Column:
    logged = ("matches",) if column is EFFECT else ()
    return Column(
        f"{column.name}_over_random", f"{column.label} over random", "higher", "", interval=True,
        logged=logged, meaning=f"{column.label} minus that of random targets, on the same events",
    )  # fmt: skip


OF_RANDOM = {column: _of_random(column) for column in CONTROLLED}
OVER_RANDOM = {column: _over_random(column) for column in CONTROLLED}
ON_RATE = share(
    "on_rate", "on rate",
    "share of silent partners that become active when the source feature is added", interval=True,
)  # fmt: skip
ON_RATE_RANDOM = share("on_rate_random", "on rate of random targets",
    "on rate of random targets of the partners' deciles of activity",
)  # fmt: skip
SPECIFICITY = share(
    "specificity", "specificity",
    "mean of the partner's share of the absolute change of all target features", interval=True,
)  # fmt: skip
JOINT_EFFECT, JOINT_OFF_RATE, SINGLE_EFFECT, SINGLE_OFF_RATE = (
    Column(
        f"{kind}_{column.name}", f"{kind} {column.label}", "higher", "", column.least, 1.0, True,
        meaning=f"{column.label} on a target feature of removing {meaning}",
    )
    for kind, meaning in (
        ("joint", "all of its active sources"),
        ("single", "the active source of largest weight"),
    )
    for column in (EFFECT, OFF_RATE)
)  # fmt: skip
SLOPE = Column(
    "slope", "slope of measured on predicted change", interval=True,
    meaning="least-squares slope, through 0, of the measured on the predicted change",
)  # fmt: skip
CORRELATION = Column(
    "correlation", "correlation of predicted and measured change", "higher", "", -1.0, 1.0, True,
    meaning="Pearson correlation of the change of the partner's pre-activation with -f (d . w_enc)",
)  # fmt: skip
REINFORCED = share(
    "reinforced", "reinforced", "share of changes more than 1.1 times the predicted one",
    interval=True,
)  # fmt: skip
ERASED = share(
    "erased", "erased", "share of changes less than 0.1 times the predicted one", interval=True
)
SPEARMAN = Column(
    "spearman", "rank correlation with effect", None, "", -1.0, 1.0, True,
    meaning="Spearman correlation, over matched features, of the effect with another measure",
)  # fmt: skip
FLOOR_95 = Column(
    "floor_95", "95th percentile of random targets",
    meaning="95th percentile of the feature's mean effect on the other targets of the partner's "
    "decile",
)  # fmt: skip
COLUMNS = (
    OFF_RATE, EFFECT, OFF_RATE_ACTIVE, MASS, COVERAGE, *OF_RANDOM.values(), *OVER_RANDOM.values(),
    ON_RATE, ON_RATE_RANDOM, SPECIFICITY, JOINT_EFFECT, JOINT_OFF_RATE, SINGLE_EFFECT,
    SINGLE_OFF_RATE, SLOPE, CORRELATION, REINFORCED, ERASED, SPEARMAN, FLOOR_95,
)  # fmt: skip

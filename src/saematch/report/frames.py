"""Choose rows and columns of the tables of a run, for figures, rules and comparisons."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from saematch.core.columns import EXPLAINED_VARIANCE
from saematch.core.pairs import NO_ARM, OF_DEFAULT, SUITE_COLUMNS
from saematch.core.tables import Tables, rows_of


def table(tables: Tables, name: str) -> pd.DataFrame:
    """Return a table, or an empty frame if the run does not have the table."""
    return tables[name] if name in tables else pd.DataFrame()


def skipped_layers(tables: Tables) -> pd.DataFrame:
    """Return the table ``strategies``, or an empty frame if it has no explained variance.

    An evaluation of another package may have made the table.
    """
    strategies = table(tables, "strategies")
    return strategies if EXPLAINED_VARIANCE.name in strategies else strategies.iloc[:0]


def where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Return the rows that have the values; None selects rows without a value.

    Raises ``KeyError`` if a frame with rows lacks a column.
    """
    if frame.empty:
        return frame
    chosen = pd.Series(True, index=frame.index)
    for name, value in values.items():
        column = frame[name]
        chosen &= column.isna() if value is None else (column == value).fillna(False).astype(bool)
    return frame[chosen]


def unique(frame: pd.DataFrame, *columns: str) -> list[tuple]:
    """Return the different values of columns, in order of first appearance."""
    if frame.empty:
        return []
    return [tuple(row.values()) for row in rows_of(frame[list(columns)].drop_duplicates())]


def values_of(frame: pd.DataFrame, column: str) -> list:
    """Return the different values of one column, in order of first appearance."""
    return [value for (value,) in unique(frame, column)]


def numbers(frame: pd.DataFrame, column: str, missing: float = math.nan) -> np.ndarray:
    """Return a column as floats, with ``missing`` where there is no value."""
    return frame[column].astype("Float64").to_numpy(dtype=float, na_value=missing)


def interval_of(frame: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ends of a metric's intervals; None unless all rows have intervals."""
    ends = [f"{metric}_low", f"{metric}_high"]
    if frame.empty or not set(ends) <= set(frame) or frame[ends].isna().any(axis=None):
        return None
    low, high = (numbers(frame, end) for end in ends)
    return low, high


def has(frame: pd.DataFrame, metric: str) -> bool:
    """Whether a row has a value of a metric."""
    return metric in frame and bool(frame[metric].notna().any())


def with_metric(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows that have a value of a metric."""
    return frame[frame[metric].notna()] if metric in frame else frame.iloc[:0]


def of_one_suite(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the default suite.

    If all rows belong to one suite, or to one pair of suites, return all rows.
    """
    return frame if len(unique(frame, *SUITE_COLUMNS)) == 1 else where(frame, **OF_DEFAULT)


def within_suites(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose source and target belong to one suite."""
    return frame if frame.empty else frame[frame["source_suite"] == frame["target_suite"]]


def arms_of(frame: pd.DataFrame) -> list[str]:
    """Return the arms of a table."""
    return [str(arm) for arm in values_of(frame, "arm") if arm != NO_ARM]


def datasets_of(frame: pd.DataFrame) -> list[str]:
    """Return the data sets of a table."""
    return [str(name) for name in values_of(frame, "dataset")]


def layer_pairs(frame: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the pairs of source and target layer of a table."""
    return unique(frame, "source_layer", "target_layer")


def among(frame: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``frame`` whose key columns have the values of a row of ``keys``."""
    if frame.empty or keys.empty:
        return frame.iloc[:0]
    return frame.reset_index().merge(keys.drop_duplicates(), how="inner").set_index("index")


def main_line(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``paths`` along which each path carries most weight.

    The frame has the paths of one arm, in the order of steps. The result has one row for each path
    and step: the row of largest absolute path weight among those that leave the feature where the
    previous step ended. A path ends at the step that has no such row.
    """
    weights = frame.assign(path_weight=frame["path_weight"].astype("Float64").abs().fillna(0))
    lines: list[pd.DataFrame] = []
    for _, of_step in weights.groupby("step"):
        if lines:
            ends = lines[-1][["path", "target_feature"]]
            of_step = among(of_step, ends.rename(columns={"target_feature": "source_feature"}))
        best = of_step.groupby("path", sort=False)["path_weight"].idxmax()
        lines.append(frame.loc[best])
    return pd.concat(lines)

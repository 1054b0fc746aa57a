"""The tables of a run: frames by name, with the definitions of the metrics in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.pairs import PAIR_COLUMNS

Value = str | int | float | bool | None
Row = dict[str, Value]

KEYS = (*PAIR_COLUMNS, "suite", "layer", "arm", "dataset", "strategy", "quantile")
"""Key columns of rows; tables are joined by the key columns that they share."""
RESERVED = ("means", "refused", "metrics", "columns")
"""Names of tables that a run or its mirrors write."""


class Tables(dict[str, pd.DataFrame]):
    """Frames by name, and the definition of each metric."""

    def __init__(
        self, frames: Mapping[str, pd.DataFrame] | None = None, columns: Iterable[Column] = ()
    ) -> None:
        super().__init__(frames or {})
        self.columns: dict[str, Column] = {}
        self.define(columns)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(frame)} rows" for name, frame in self.items())
        return f"Tables({sizes})"

    def _repr_html_(self) -> str:
        """Return the size of each table, for notebooks."""
        rows = [
            {"table": name, "rows": len(frame), "columns": len(frame.columns)}
            for name, frame in self.items()
        ]
        return pd.DataFrame(rows).to_html(index=False)

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Row]], columns: Iterable[Column] = ()) -> Tables:
        """Return the tables of these rows."""
        return cls({name: frame_of(of_table) for name, of_table in rows.items()}, columns)

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a table; empty if the run does not have the table."""
        return rows_of(self[name]) if name in self else []

    def column(self, name: str) -> Column:
        """Return the definition of a metric; a name without one is its own label."""
        return self.columns.get(name, Column(name, name))

    def define(self, columns: Iterable[Column]) -> None:
        """Add definitions of metrics."""
        self.columns |= {column.name: column for column in columns}

    def add(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table, or join new columns to an existing table by the key columns of both.

        Rows of the table without a counterpart in ``frame`` get no value. Raises ``InputError`` if
        the two share no key, if rows of ``frame`` have equal keys or keys that the table lacks, and
        if the table already has one of the new columns.
        """
        if name not in self:
            self[name] = frame
            return
        if frame.empty:
            return
        table = self[name]
        keys = [key for key in KEYS if key in table and key in frame]
        existing = [str(column) for column in frame if column in table and column not in keys]
        problem = f"the table has {', '.join(existing)} already" if existing else ""
        problem = problem or _problem_of_keys(table, frame, keys)
        if problem:
            raise InputError(
                f"the new columns of the table {name} cannot be joined: {problem}; use another "
                "name for the table or the column, or correct the rows"
            )
        self[name] = table.merge(frame, how="left", on=keys)

    def join(self, tables: Tables) -> None:
        """Add tables, as ``add`` does, and their definitions.

        Raises ``InputError`` for a table with a name in ``RESERVED``.
        """
        for name, frame in tables.items():
            if name in RESERVED:
                raise InputError(f"a table of an evaluation may not be called {name}: rename it")
            self.add(name, frame)
        self.define(tables.columns.values())


def frame_of(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return a frame of rows, some of which may lack columns.

    Whole numbers become Int64 and truth values boolean, so that a missing value changes no type.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: _series([row.get(name) for row in rows]) for name in names})


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame; missing values and NaN are None."""
    columns = {
        str(name): [None if missing else value for value, missing in zip(values, gaps, strict=True)]
        for name in frame
        for values, gaps in [(frame[name].tolist(), frame[name].isna().tolist())]
    }
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _problem_of_keys(table: pd.DataFrame, frame: pd.DataFrame, keys: list[str]) -> str:
    """Return why a frame cannot be joined to a table by the keys; empty if it can be joined."""
    if not keys:
        return f"they have none of its key columns ({', '.join(k for k in KEYS if k in table)})"
    repeated = frame[frame.duplicated(keys)]
    if len(repeated):
        return f"several rows have {_key(repeated, keys)}"
    sides = frame[keys].merge(table[keys].drop_duplicates(), how="left", indicator=True)
    lost = sides[sides["_merge"] == "left_only"]
    return f"it has no row with {_key(lost, keys)}" if len(lost) else ""


def _key(frame: pd.DataFrame, keys: list[str]) -> str:
    """Return the key of the first row, for a message."""
    return ", ".join(f"{name} {value}" for name, value in rows_of(frame[keys])[0].items())


def _series(values: list[object]) -> pd.Series:
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    return pd.Series(values, dtype=object)

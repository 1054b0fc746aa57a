"""Tables of a run: rows and frames, and columns that are joined by key."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.pairs import Pair
from saematch.core.tables import Tables, frame_of, rows_of

FIRST, SECOND = (Pair.of_layers(n, n + 1).columns() for n in range(2))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3, 1, 2], "Int64"),
        ([2**53 + 1, None, -1], "Int64"),
        ([True, None, False], "boolean"),
        ([0.5, None, 1.0], "float64"),
        ([1, 0.5, None], "float64"),
        (["a", "", None], "object"),
        ([None, None], "object"),
    ],
)
def test_rows_come_back_as_they_were(values, dtype):
    rows = [{"x": value, "arm": "a"} for value in values]
    frame = frame_of(rows)
    assert frame["x"].dtype == dtype
    back = rows_of(frame)
    assert back == rows
    if dtype != "float64":
        assert [type(row["x"]) for row in back] == [type(value) for value in values]
    assert rows_of(frame_of(back)) == rows


def test_values_that_are_not_numbers_come_back_as_none():
    rows = rows_of(frame_of([{"x": math.nan}, {"x": 1.0}, {"x": math.inf}]))
    assert rows == [{"x": None}, {"x": 1.0}, {"x": math.inf}]


def test_columns_that_rows_lack_are_none_and_keep_their_order():
    frame = frame_of([{"b": 1}, {"a": "x", "b": 2}])
    assert list(frame) == ["b", "a"]
    assert rows_of(frame) == [{"b": 1, "a": None}, {"b": 2, "a": "x"}]


def test_no_rows_are_an_empty_frame():
    assert frame_of([]).empty
    assert rows_of(frame_of([])) == []
    assert rows_of(frame_of([{"x": 1}]).iloc[:0]) == []
    assert Tables.of({"empty": []}).rows("empty") == []
    assert Tables().rows("absent") == []


def matches():
    rows = [
        {**pair, "arm": arm, "n": n}
        for n, (pair, arm) in enumerate((p, a) for p in (FIRST, SECOND) for a in ("b", "a"))
    ]
    return Tables.of({"matches": rows})


def test_added_columns_are_joined_by_key_and_rows_keep_their_order():
    tables = matches()
    scores = [
        {**SECOND, "arm": "b", "score": 3, "live": True},
        {**FIRST, "arm": "b", "score": 1, "live": False},
        {**SECOND, "arm": "a", "score": 2, "live": None},
    ]
    tables.add("matches", frame_of(scores))
    rows = tables.rows("matches")
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    assert [row["score"] for row in rows] == [1, None, 3, 2]
    assert [row["live"] for row in rows] == [False, None, True, None]
    assert all(type(row["n"]) is int for row in rows)
    assert tables["matches"]["score"].dtype == "Int64"


def test_tables_are_joined_by_the_keys_that_both_have():
    tables = matches()
    tables.add("matches", frame_of([{**FIRST, "recall": 0.5}, {**SECOND, "recall": 1.0}]))
    assert [row["recall"] for row in tables.rows("matches")] == [0.5, 0.5, 1.0, 1.0]


def test_a_missing_quantile_is_a_key_like_any_other():
    rows = [{"arm": "a", "quantile": quantile} for quantile in (None, 0.5)]
    tables = Tables.of({"strategies": rows})
    more = [{"arm": "a", "quantile": 0.5, "x": 2}, {"arm": "a", "quantile": None, "x": 1}]
    tables.add("strategies", frame_of(more))
    assert [row["x"] for row in tables.rows("strategies")] == [1, 2]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{**FIRST, "arm": "b", "score": n} for n in (1, 2)], "several rows have source_suite"),
        ([{**FIRST, "arm": "unknown", "score": 7}], "no row with .* arm unknown;"),
        ([{**FIRST, "arm": "b", "n": 10}], "has n already"),
        ([{"score": 1}], r"none of its key columns \(.*target_layer.*arm\)"),
    ],
)
def test_columns_that_would_lose_values_are_refused(rows, problem):
    tables = matches()
    before = tables.rows("matches")
    with pytest.raises(InputError, match=f"columns of the table matches cannot be .* {problem}"):
        tables.add("matches", frame_of(rows))
    assert tables.rows("matches") == before


def test_a_second_table_of_one_name_is_refused():
    """As of two evaluations of one class, of which the second would vanish."""
    tables = Tables.of({"strategies": [{**FIRST, "arm": "a", "strategy": "permute", "x": 1}]})
    with pytest.raises(InputError, match="table strategies"):
        tables.join(Tables.of({"strategies": [{**FIRST, "arm": "a", "strategy": "drop", "y": 1}]}))


@pytest.mark.parametrize("name", ["means", "refused", "metrics", "columns"])
def test_names_of_a_runs_own_tables_are_refused(name):
    with pytest.raises(InputError, match=f"may not be called {name}"):
        matches().join(Tables.of({name: [{"x": 1}]}))


def test_numpy_numbers_become_plain_numbers():
    rows = [{"n": np.int64(1), "x": np.float32(0.5), "b": np.bool_(True)}, {"n": None}]
    back = rows_of(frame_of(rows))
    assert back == [{"n": 1, "x": 0.5, "b": True}, {"n": None, "x": None, "b": None}]
    assert [type(value) for value in back[0].values()] == [int, float, bool]


def test_an_empty_frame_adds_a_table_but_no_columns():
    tables = matches()
    before = tables.rows("matches")
    tables.add("matches", frame_of([]))
    assert tables.rows("matches") == before
    tables.add("new", frame_of([]))
    assert tables["new"].empty


def test_joined_tables_bring_their_definitions():
    score = Column("score", "my score", "higher")
    tables = matches()
    tables.join(Tables.of({"matches": [{**FIRST, "arm": "a", "score": 1.0}], "own": []}, [score]))
    assert tables.rows("matches")[1]["score"] == 1.0
    assert isinstance(tables["own"], pd.DataFrame)
    assert tables.column("score") is score
    assert tables.column("other").label == "other"


def test_representations_name_the_tables():
    tables = Tables.of({"matches": [{"arm": "a<b", "mse": 0.5}] * 3, "<x>": [{"arm": "a"}]})
    assert repr(tables) == "Tables(matches: 3 rows, <x>: 1 rows)"
    cells = re.findall("<td>(.*)</td>", tables._repr_html_())
    assert cells == ["matches", "3", "2", "&lt;x&gt;", "1", "1"]

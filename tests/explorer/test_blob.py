"""Data files: packing, rounding, limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_files
from saematch.core.errors import InputError
from saematch.explorer import blob
from saematch.explorer.blob import cut, decimals, packed, quoted, unsigned, write_parts


@given(st.binary(max_size=64))
def test_a_string_has_all_bytes(content):
    assert data_files.unquoted(quoted(content)) == content


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int16])
def test_arrays_of_whole_numbers(kind):
    values = np.array([0, 1, 100, np.iinfo(kind).max, np.iinfo(kind).min], kind)
    assert data_files.parts(packed({"a": values}))["a"].tolist() == values.tolist()


def test_values_of_several_parts():
    parts = {
        "a": np.array([1, 2], np.uint16),
        "b": ["x", None, "é\u2028"],
        "c": np.zeros(0, np.uint8),
    }
    read = data_files.parts(packed(parts))
    assert read["a"].tolist() == [1, 2]
    assert read["b"] == parts["b"]
    assert read["c"].tolist() == []


def test_a_lone_surrogate_becomes_a_question_mark():
    assert data_files.parts(packed({"a": ["x\ud800"]}))["a"] == ["x?"]


@given(
    st.lists(st.floats(min_value=1e-98, max_value=1e99) | st.floats(-1e99, -1e-98) | st.just(0.0))
)
def test_decimals_have_three_digits(values):
    exact = np.array(values, float)
    read = data_files.parts(packed({"a": exact}))["a"]
    assert read.tolist() == [float(f"{value:.2e}") for value in values] or np.all(
        np.abs(read - exact) <= 0.005 * np.abs(exact) * (1 + 1e-12)  # a tie, such as 0.0005
    )


def test_decimals_of_numbers_that_are_not_finite():
    values = np.array([np.nan, np.inf, -np.inf, 1e-120, 0.7312, -123456.0, 999.9])
    mantissas, exponents = decimals(values)
    assert mantissas.tolist() == [-32768, 32767, -32767, 0, 731, -123, 1000]
    assert exponents.tolist() == [0, 0, 0, 0, -3, 3, 0]
    expected = [np.nan, np.inf, -np.inf, 0, 0.731, -123000, 1000]
    np.testing.assert_array_equal(data_files.parts(packed({"a": values}))["a"], expected)


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(blob, "MAX_BYTES", 1000)
    noise = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    with pytest.raises(ValueError, match=r"the data file a/b has .* bytes, over 1000"):
        write_parts(tmp_path, "a/b", {"noise": noise})
    assert not list(tmp_path.rglob("*.js"))


def test_a_file_calls_receive_with_its_name(tmp_path):
    write_parts(tmp_path, "a/b", {"x": [1]})
    write_parts(tmp_path, 'a"b', {"x": [1]})
    assert data_files.read(tmp_path, "a/b") == data_files.read(tmp_path, 'a"b') == {"x": [1]}
    blob.write_object(tmp_path, "run", {"x": "</script>\u2028é"})
    assert data_files.read(tmp_path, "run") == {"x": "</script>\u2028é"}


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_slices_have_limited_costs(costs, most):
    slices = cut(np.array(costs, np.int64), most)
    assert [i for part in slices for i in range(part.start, part.stop)] == [*range(len(costs))]
    for part in slices:
        assert sum(costs[part]) < most + max(costs[part])
    assert all(part.stop > part.start for part in slices)


def test_slices_by_hand():
    assert cut(np.array([4, 4, 4, 4]), 8) == [slice(0, 2), slice(2, 4)]
    assert cut(np.array([], np.int64), 8) == []
    assert cut(np.array([20, 1, 9]), 8) == [slice(0, 2), slice(2, 3)]


def test_bits_of_unsigned_numbers():
    assert unsigned(np.array([0, 255])).dtype == np.uint8
    assert unsigned(np.array([256])).dtype == np.uint16
    assert unsigned(np.array([65536])).dtype == np.uint32
    assert unsigned(np.zeros(0, np.int64)).dtype == np.uint8


@pytest.mark.parametrize("name", ["links/../../../x/0", "../x", "/tmp/x"])
def test_no_file_is_written_outside_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="cannot name a data file"):
        blob.write_object(tmp_path / "data", name, {})
    assert not list(tmp_path.iterdir())

"""Results in the container and the types of the table that came in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skgroupvae.data.output import like_input


@pytest.fixture
def values(pupils):
    return np.arange(2.0 * len(pupils)).reshape(-1, 2)


def test_an_array_without_labels_is_the_values(values):
    assert like_input(values, np.zeros(values.shape)) is values


def test_each_float_column_keeps_its_width_and_integers_become_floats(X, values):
    mixed = X.assign(score=X["score"].astype(np.float32), effort=range(len(X)))
    frame = like_input(values, mixed)
    assert frame.dtypes.tolist() == [np.float32, np.float64]
    assert frame.index.equals(X.index)
    np.testing.assert_array_equal(frame, values)


@pytest.mark.parametrize("column", ["school", -1])
def test_labels_come_back_in_their_column(column, pupils, values):
    table = pupils[["school", "score", "effort"]] if column == "school" else pupils
    frame = like_input(values, table, column, ["new"] * len(pupils))
    assert list(frame.columns) == list(table.columns)
    assert (frame.dtypes == table.dtypes).all()
    assert set(frame["school"]) == {"new"}
    np.testing.assert_array_equal(frame[["score", "effort"]], values)


def test_a_category_that_the_column_lacks_is_not_lost(pupils, values):
    table = pupils.astype({"school": "category"})
    same = like_input(values, table, "school", ["school 3"] * len(pupils))
    assert same["school"].dtype == table["school"].dtype
    new = like_input(values, table, "school", ["new"] * len(pupils))
    assert set(new["school"]) == {"new"}


def test_labels_of_an_array(values):
    original = np.zeros((len(values), 3), dtype=np.float32)
    table = like_input(values, original, 1, np.full(len(values), 7))
    np.testing.assert_array_equal(table[:, [0, 2]], values)
    np.testing.assert_array_equal(table[:, 1], 7.0)


def test_columns_named_by_numbers_beside_labels():
    X = pd.DataFrame(np.zeros((2, 2))).assign(school=["a", "b"])
    moved = like_input(np.ones((2, 2)), X, "school", ["b", "b"])
    assert moved.columns.tolist() == [0, 1, "school"]
    assert moved["school"].tolist() == ["b", "b"]


def test_each_part_of_a_nested_label_is_in_its_column(pupils, values):
    table = pupils.assign(district=1)
    labels = [(2, "school 4")] * len(pupils)
    moved = like_input(values, table, ["district", "school"], labels)
    assert (moved.dtypes == table.dtypes).all()
    assert set(moved["district"]) == {2}
    assert set(moved["school"]) == {"school 4"}
    for bad in ("school 4", (2,), (2, "a", "b")):
        with pytest.raises(ValueError, match=r"target_group .* must be a tuple of 2 labels"):
            like_input(values, table, ["district", "school"], [bad] * len(pupils))


# --- polars


def test_polars_comes_back_with_its_types(pupils, values):
    pl = pytest.importorskip("polars")
    table = pl.from_dict(pupils.to_dict("list")).with_columns(
        pl.col("score").cast(pl.Float32), pl.col("school").cast(pl.Categorical)
    )
    moved = like_input(values, table, "school", ["school 3"] * len(pupils))
    assert moved.schema == table.schema
    assert set(moved["school"].cast(pl.String)) == {"school 3"}
    np.testing.assert_array_equal(moved["effort"].to_numpy(), values[:, 1])


def test_integers_of_polars_become_floats_and_labels_stay():
    pl = pytest.importorskip("polars")
    table = pl.DataFrame({"count": [1, 2], "g": [3, 4]})
    moved = like_input(np.array([[0.5], [1.5]]), table, "g", [4, 4])
    assert moved.schema == {"count": pl.Float64, "g": pl.Int64}
    assert moved["count"].to_list() == [0.5, 1.5]


def test_columns_that_are_kept_stay_as_they_are_in_their_places():
    table = pd.DataFrame(
        {
            "a": [1, 2],
            "sex": pd.Categorical(["f", "m"]),
            "school": ["x", "y"],
            "b": np.float32([1, 2]),
            "age": [3, 4],
        },
        index=[7, 8],
    )
    frame = like_input(np.array([[0.5, 1.5], [2.5, 3.5]]), table, "school", ["z", "z"], ("age", "sex"))
    expected = table.assign(a=[0.5, 2.5], b=np.float32([1.5, 3.5]), school=["z", "z"])
    pd.testing.assert_frame_equal(frame, expected)
    assert frame.columns.tolist() == table.columns.tolist()

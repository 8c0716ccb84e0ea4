"""Observed columns: kinds, units, and one outcome or several with cells missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import DataConversionWarning

from skgroupvae.data.columns import KINDS, Column, center_and_scale, read_outcomes

VALUES = {
    "numeric": ("gaussian", np.array([3.0, -1.5, 8.0, 3.0])),
    "binary": ("bernoulli", np.array([0.0, 1.0, 1.0, 0.0])),
    "count": ("poisson", np.array([0.0, 12.0, 3.0, 3.0])),
    "proportion": ("binomial", np.array([0.0, 0.25, 1.0, 0.5])),
    "ordered": ("ordinal", np.array([7.0, 1.0, 2.5, 7.0])),
}


# --- units


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_undoes_encoding(kind):
    family, values = VALUES[kind]
    column = Column.learn("a", values, kind, family)
    encoded = column.encode(values)
    np.testing.assert_allclose(column.decode(encoded), values)
    np.testing.assert_allclose(column.decode(encoded.reshape(2, 2)), values.reshape(2, 2))
    assert (column.name, column.kind, column.family) == ("a", kind, family)


def test_numbers_are_standardized_levels_are_ranks_and_the_rest_stays():
    family, values = VALUES["numeric"]
    column = Column.learn("a", values, "numeric", family)
    assert (column.center, column.scale) == pytest.approx((values.mean(), values.std()))
    np.testing.assert_allclose(column.encode(values), (values - values.mean()) / values.std())
    family, values = VALUES["ordered"]
    column = Column.learn("a", values, "ordered", family)
    assert column.levels == (1.0, 2.5, 7.0)
    assert column.encode(values).tolist() == [2.0, 0.0, 1.0, 2.0]
    for kind in ("binary", "count", "proportion"):
        family, values = VALUES[kind]
        np.testing.assert_array_equal(Column.learn("a", values, kind, family).encode(values), values)


@given(st.integers(0, 2**16), st.integers(1, 60))
def test_units_do_not_depend_on_the_order_of_the_rows(seed, n_rows):
    rng = np.random.RandomState(seed)
    values = rng.normal(size=n_rows) * 10.0 ** rng.uniform(-5, 5, n_rows)
    column = Column.learn("a", values, "numeric", "gaussian")
    assert Column.learn("a", rng.permutation(values), "numeric", "gaussian") == column
    table = rng.normal(size=(n_rows, 3))
    for first, second in zip(
        center_and_scale(table), center_and_scale(np.asfortranarray(rng.permutation(table))), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_masked_cells_and_rows_of_weight_zero_teach_nothing():
    values, weights = np.array([1.0, 2.0, 4.0, 99.0, 0.0]), np.array([1.0, 3.0, 0.5, 0.0, 1.0])
    mask = np.array([True, True, True, True, False])
    for kind, family in (("numeric", "gaussian"), ("ordered", "ordinal")):
        column = Column.learn("a", values, kind, family, weights, mask=mask)
        assert column == Column.learn("a", values[:3], kind, family)
        encoded = column.encode(np.where(weights > 0, values, 4.0), mask=mask)
        assert encoded[4] == 0.0
        np.testing.assert_array_equal(encoded[:3], column.encode(values[:3]))
    with pytest.raises(ValueError, match="y is missing in every row of positive weight; leave"):
        Column.learn("a", values, "numeric", "gaussian", np.where(mask, 0.0, 1.0), mask=mask)


@pytest.mark.parametrize("value", [0.0, 7.25, -1e12, 1e-300])
def test_a_constant_column_keeps_its_units(value):
    column = Column.learn("a", np.full(7, value), "numeric", "gaussian")
    assert column.scale == 1.0
    np.testing.assert_allclose(column.encode(np.full(7, value)), 0.0, atol=1e-3)


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_tiny_and_huge_numbers_are_numbers_like_others(factor):
    values = np.random.RandomState(0).normal(size=40)
    plain, scaled = (Column.learn("a", x, "numeric", "gaussian") for x in (values, factor * values))
    np.testing.assert_allclose(scaled.encode(factor * values), plain.encode(values), rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "family", "value", "message"),
    [
        ("binary", "bernoulli", 2.0, "must be 0 or 1 for family='bernoulli'; recode it, or choose another"),
        ("count", "poisson", 1.5, r"must be counts 0, 1, 2, \.\.\. for family='poisson'; recode"),
        ("count", "negative_binomial", -1.0, "must be counts .* for family='negative_binomial'; recode"),
        ("proportion", "binomial", 1.5, "must be shares between 0 and 1 for family='binomial'; recode"),
        (
            "ordered",
            "ordinal",
            3.0,
            r"has levels \[3.0\] that the fit has not seen; refit with them, or drop",
        ),
    ],
)
def test_values_that_the_kind_cannot_have(kind, family, value, message):
    values = VALUES[kind][1]
    column = Column.learn("a", values, kind, family)
    for argument in ("y", "column 'a' of X"):
        with pytest.raises(ValueError, match=f"^{argument} {message}"):
            column.encode(np.append(values, value), argument=argument)
        if kind != "ordered":
            with pytest.raises(ValueError, match=f"^{argument} {message}"):
                Column.learn("a", np.append(values, value), kind, family, argument=argument)


def test_two_levels_are_no_order_and_a_kind_is_one_of_the_list():
    with pytest.raises(ValueError, match="y has 2 levels, family='ordinal' needs 3 or more; use 'bernoulli'"):
        Column.learn("a", np.array([1.0, 2.0, 2.0]), "ordered", "ordinal")
    with pytest.raises(ValueError, match="kind='text' is not a kind of column; use one of"):
        Column("a", "text")


# --- outcomes


@pytest.mark.parametrize(
    ("y", "name"),
    [
        ([1.0, 2.0, 3.0], "y"),
        (np.array([1, 2, 3], dtype=np.uint8), "y"),
        (pd.Series([1.0, 2.0, 3.0], name="score", index=[5, 5, 6]), "score"),
        (pd.Series([1, 2, 3], dtype="Int64"), "y"),
    ],
)
def test_one_outcome(y, name):
    values, mask, trials, names = read_outcomes(y, 3, "numeric")
    assert values.tolist() == [[1.0], [2.0], [3.0]]
    assert values.dtype == np.float64
    assert mask is None
    assert trials.tolist() == [1.0, 1.0, 1.0]
    assert names == [name]


def test_one_column_is_one_outcome_with_a_warning_as_in_scikit_learn():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        values, _, _, names = read_outcomes(pd.DataFrame({"score": [1.0, 2.0]}), 2, "numeric")
    assert values.shape == (2, 1)
    assert names == ["score"]


def test_several_outcomes_may_miss_cells():
    y = pd.DataFrame({"math": [1.0, np.nan, 3.0, np.nan], "reading": [4, 5, pd.NA, pd.NA]})
    for table in (y, y.astype({"reading": "Int64"}), y.astype(object)):
        values, mask, trials, names = read_outcomes(table, 4, "numeric")
        assert values.tolist() == [[1.0, 4.0], [0.0, 5.0], [3.0, 0.0], [0.0, 0.0]]
        assert mask.tolist() == [[True, True], [False, True], [True, False], [False, False]]
        assert trials.tolist() == [1.0] * 4
        assert names == ["math", "reading"]
    array = read_outcomes(y.to_numpy(dtype=object), 4, "numeric")
    assert array.names == ["y0", "y1"]
    np.testing.assert_array_equal(array.mask, mask)
    assert read_outcomes(np.ones((4, 2)), 4, "numeric").mask is None


def test_outcomes_from_polars():
    pl = pytest.importorskip("polars")
    several = read_outcomes(pl.DataFrame({"a": [1.0, None], "b": [3, 4]}), 2, "numeric")
    assert several.names == ["a", "b"]
    assert several.mask.tolist() == [[True, True], [False, True]]
    one = read_outcomes(pl.Series("a", [1.0, 2.0]), 2, "numeric")
    assert one.names == ["a"]
    assert one.values.tolist() == [[1.0], [2.0]]
    assert read_outcomes(pl.Series([1.0, 2.0]), 2, "numeric").names == ["y"]


def test_later_tables_are_read_by_the_names_of_the_fit():
    names = ["math", "reading"]
    y = pd.DataFrame({"reading": [np.nan, np.nan], "math": [1.0, 2.0], "other": ["x", "y"]})
    outcomes = read_outcomes(y, 2, "numeric", names=names)
    assert outcomes.names == names
    assert outcomes.values.tolist() == [[1.0, 0.0], [2.0, 0.0]]
    assert outcomes.mask.tolist() == [[True, False]] * 2
    with pytest.raises(ValueError, match=r"y of context lacks the outcomes \['reading'\]; pass a DataFrame"):
        read_outcomes(y[["math", "other"]], 2, "numeric", names=names, argument="y of context")
    for array in (np.ones(2), np.ones((2, 3))):
        with pytest.raises(ValueError, match=r"y must have one column for each .*\['math', 'reading'\]"):
            read_outcomes(array, 2, "numeric", names=names)


def test_successes_and_failures_are_a_share_and_trials():
    outcomes = read_outcomes(np.array([[1, 3], [2, 0]]), 2, "proportion")
    assert outcomes.values.tolist() == [[0.25], [1.0]]
    assert outcomes.trials.tolist() == [4.0, 2.0]
    assert outcomes.mask is None


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones(2), r"y must have 2 columns, successes and failures.*np.column_stack"),
        (np.ones((2, 3)), r"y must have 2 columns, successes and failures, got shape \(2, 3\)"),
        ([[0.5, 0.5], [1, 1]], "y must be counts of successes and failures.*multiply proportions"),
        ([[1, -1], [1, 1]], "y must be counts of successes and failures"),
        ([[1, 1], [0, 0]], "y has no trial in row 1; drop"),
        ([["a", 1], [1, 1]], "y must be the numbers of successes and failures"),
    ],
)
def test_proportions_that_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        read_outcomes(y, 2, "proportion")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing: requires y to be passed"),
        ([1.0, np.nan], "y contains NaN or infinite values.*row 1; drop"),
        ([np.inf, 1.0], "y contains NaN or infinite values.*row 0; drop"),
        ([1.0], "y has 1 outcomes but X has 2 rows; pass one"),
        (["a", "b"], "y must be one number a row"),
        ([[1.0], [1.0, 2.0]], "y must be one number a row"),
        (np.ones((2, 2, 2)), "y must be one number a row"),
        ([[1.0, np.inf], [1.0, 2.0]], r"y contains infinite values \(inf\), first in outcome .* at row 0"),
        ([[1.0, np.nan], [1.0, np.nan]], "outcome 'y1': y is missing in every row; leave this outcome out"),
        (np.ones((3, 2)), "y has 3 outcomes but X has 2 rows"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), "y must be one number a row"),
        (
            pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
            r"y has duplicate column names \['a'\]; rename",
        ),
    ],
)
def test_outcomes_that_are_refused_in_one_line(y, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_outcomes(y, 2, "numeric")
    assert "\n" not in str(caught.value)

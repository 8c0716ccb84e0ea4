"""Where covariates are found, and the design that comes of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skgroupvae.data.covariates import Covariates

X = pd.DataFrame(
    {
        "age": [20, 30, 40, 50],
        "a": [0.1, 0.2, 0.3, 0.4],
        "sex": list("mfmf"),
        "b": [1.0, 2.0, 3.0, 4.0],
    }
)
NAMES = ("X", "covariates")
AGE = np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)
SEX = np.array([1.0, -1.0, 1.0, -1.0])
DESIGN = np.column_stack([np.ones(4), AGE, SEX])


def learned(covariates, table=X):
    return Covariates.learn(table, covariates, "GroupVAE")


def test_named_columns_are_taken_out_of_x():
    reader, left, design = learned(["age", "sex"])
    assert reader.columns == ("age", "sex")
    assert left.columns.tolist() == ["a", "b"]
    np.testing.assert_allclose(design, DESIGN)
    assert reader.design.names == ("Intercept", "age", "sex[m]")
    assert X.columns.tolist() == ["age", "a", "sex", "b"]


def test_the_order_of_names_is_that_of_the_design():
    assert learned(["sex", "age"])[0].design.names == ("Intercept", "sex[m]", "age")


@pytest.mark.parametrize("named", ["age", ["age"], ("age",)])
def test_one_name(named):
    reader, left, design = learned(named)
    assert reader.columns == ("age",)
    assert left.columns.tolist() == ["a", "sex", "b"]
    np.testing.assert_allclose(design, DESIGN[:, :2])


def test_a_table_leaves_x_as_it_is():
    values = X[["a", "b"]].to_numpy()
    reader, left, design = learned(X[["age", "sex"]], values)
    assert reader.columns is None
    assert left is values
    np.testing.assert_allclose(design, DESIGN)


@pytest.mark.parametrize(
    "column",
    [X["age"], X["age"].to_numpy(), X[["age"]].to_numpy(), X["age"].tolist(), X["age"].astype("Int64")],
    ids=["series", "array", "column", "list", "nullable"],
)
def test_one_column_of_any_kind(column):
    np.testing.assert_allclose(learned(column)[2], DESIGN[:, :2])


@pytest.mark.parametrize(
    "column",
    [X["sex"], X["sex"].to_numpy(), X["sex"].to_numpy(dtype="U1"), X["sex"].astype("category")],
    ids=["series", "objects", "texts", "categorical"],
)
def test_categories_of_any_kind(column):
    np.testing.assert_allclose(learned(column)[2], DESIGN[:, [0, 2]])


def test_numbers_beside_texts_in_an_array_are_numbers():
    np.testing.assert_allclose(learned(X[["age", "sex"]].to_numpy(dtype=object))[2], DESIGN)


def test_booleans_are_numbers():
    np.testing.assert_allclose(learned((X["sex"] == "m").to_numpy())[2], DESIGN[:, [0, 2]])


def test_polars_tables():
    pl = pytest.importorskip("polars")
    table = pl.DataFrame({name: X[name].to_list() for name in X.columns})
    np.testing.assert_allclose(learned(table[["age", "sex"]], table)[2], DESIGN)
    reader, left, design = learned(["age", "sex"], table)
    assert list(left.columns) == ["a", "b"]
    np.testing.assert_allclose(design, DESIGN)
    np.testing.assert_allclose(reader.read(table, None, NAMES)[1], DESIGN)
    np.testing.assert_allclose(learned(table["age"], table)[2], DESIGN[:, :2])


def test_a_constant_column_is_zero():
    np.testing.assert_array_equal(learned(np.full(4, 7.0))[2], np.column_stack([np.ones(4), np.zeros(4)]))


def test_later_tables_are_standardized_as_that_of_the_fit():
    later = X.assign(age=X["age"] + 10)
    expected = np.column_stack([np.ones(4), (later["age"] - 35.0) / np.sqrt(125.0), SEX])
    for reader, given in (
        (learned(["age", "sex"])[0], None),
        (learned(X[["age", "sex"]])[0], later[["age", "sex"]]),
    ):
        np.testing.assert_allclose(reader.read(later, given, NAMES)[1], expected)


def test_named_columns_are_found_wherever_they_stand():
    reader = learned(["age", "sex"])[0]
    left, design = reader.read(X[["sex", "b", "a", "age"]], None, NAMES)
    assert left.columns.tolist() == ["b", "a"]
    np.testing.assert_allclose(design, DESIGN)
    np.testing.assert_allclose(reader.read(X, ["age", "sex"], NAMES)[1], DESIGN)


def test_rows_without_x_may_bring_more_columns_where_names_say_which():
    reader = learned(["age", "sex"])[0]
    for table in (X, X[["sex", "age"]]):
        np.testing.assert_allclose(reader.design_of(table, 4), DESIGN)
    # Without names there is no telling which of more columns they are.
    with pytest.raises(ValueError, match=r"^covariates: The feature names"):
        learned(X[["age", "sex"]])[0].design_of(X, 4)


def test_messages_call_the_arguments_by_their_names():
    other = ("X of context", "covariates of context")
    named, of_table = learned(["age", "sex"])[0], learned(X[["age", "sex"]])[0]
    cases = [
        (named, X, ["age"], "^covariates of context must be left out"),
        (named, X.to_numpy(), None, r"^covariates=\['age', 'sex'\] names columns, but X of context is not"),
        (named, X.drop(columns="sex"), None, r"^covariates \['sex'\] are not columns of X of context"),
        (named, X.assign(age=np.nan), None, "^X of context contains NaN"),
        (of_table, X, None, "^covariates of context is missing.*X of context"),
        (of_table, X, ["age"], "^covariates of context names columns"),
        (
            of_table,
            X,
            X[["age", "sex"]][:3],
            "^covariates of context must have one row for each of 4 rows, got 3",
        ),
        (of_table, X, X[["age", "sex"]].assign(age=np.inf), "^covariates of context contains NaN or inf"),
    ]
    for reader, table, covariates, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            reader.read(table, covariates, other)
        assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="column 'sex' of covariates of context has categories"):
        of_table.read(X, X[["age", "sex"]].assign(sex="x"), other)
    with pytest.warns(UserWarning, match="column 'sex' of X of context has categories"):
        named.read(X.assign(sex="x"), None, other)

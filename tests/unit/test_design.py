"""Covariates to design matrices, without a formula: numbers standardized, one way of coding categories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skgroupvae.data.design import PlainDesign, learn_levels
from skgroupvae.data.formula import read_formula
from skgroupvae.data.formula_design import FormulaDesign


@pytest.fixture
def table():
    """Two numbers, a text and a flag, with an index of its own."""
    rng = np.random.RandomState(0)
    return pd.DataFrame(
        {
            "x": rng.normal(3.0, 2.0, 40),
            "sex": rng.choice(["M", "F", "D"], 40, p=[0.5, 0.3, 0.2]),
            "flag": rng.uniform(size=40) > 0.5,
        },
        index=np.repeat(np.arange(20), 2),
    )


def test_numbers_are_standardized_and_categories_are_indicators(table):
    design = PlainDesign.learn(table)
    assert design.names == ("Intercept", "x", "sex[F]", "sex[M]", "flag")
    assert design.indicators == (2, 3)
    assert (design.center[0], design.scale[0]) == (0.0, 1.0)
    matrix = design.transform(table)
    np.testing.assert_array_equal(matrix[:, 0], 1.0)
    np.testing.assert_allclose(matrix[:, 1:].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(matrix[:, 1:].std(axis=0), 1.0)
    raw = matrix * design.scale + design.center
    np.testing.assert_allclose(raw[:, 1], table["x"])
    np.testing.assert_allclose(raw[:, 2], table["sex"] == "F", atol=1e-12)
    np.testing.assert_allclose(raw[:, 4], table["flag"], atol=1e-12)


def test_rows_alone_get_what_they_get_among_others(table):
    design = PlainDesign.learn(table)
    np.testing.assert_array_equal(design.transform(table[7:9]), design.transform(table)[7:9])


@given(st.integers(0, 2**16))
def test_the_order_of_the_rows_changes_no_bit(seed):
    rng = np.random.RandomState(seed)
    frame = pd.DataFrame({"x": rng.normal(size=30), "c": rng.choice(list("abc"), 30)})
    first, second = PlainDesign.learn(frame), PlainDesign.learn(frame.sample(frac=1.0, random_state=seed))
    np.testing.assert_array_equal(first.center, second.center)
    np.testing.assert_array_equal(first.scale, second.scale)
    assert first.levels == second.levels


def test_an_array_has_columns_named_by_position():
    X = np.random.RandomState(0).normal(size=(20, 2))
    design = PlainDesign.learn(X)
    assert design.names == ("Intercept", "0", "1")
    np.testing.assert_allclose(design.transform(X)[:, 1:], (X - X.mean(axis=0)) / X.std(axis=0))


def test_an_array_after_a_data_frame_is_read_by_position(table):
    design = PlainDesign.learn(table)
    np.testing.assert_array_equal(design.transform(table.to_numpy(dtype=object)), design.transform(table))


@pytest.mark.parametrize("columns", [[0, 1], [("a", "x"), ("a", "y")]])
def test_columns_named_by_numbers_and_tuples(columns):
    frame = pd.DataFrame({0: [1.0, 2.0, 4.0], 1: list("aba")}).set_axis(columns, axis=1)
    design = PlainDesign.learn(frame)
    assert design.names == ("Intercept", str(columns[0]), f"{columns[1]}[b]")
    assert design.transform(frame).shape == (3, 3)


def test_nullable_polars_and_float32_columns(table):
    pl = pytest.importorskip("polars")
    expected = PlainDesign.learn(table).transform(table)
    other = table.astype({"x": "Float64", "sex": "string", "flag": "boolean"})
    for same in (other, pl.DataFrame(table.to_dict("list"))):
        np.testing.assert_allclose(PlainDesign.learn(same).transform(same), expected, rtol=1e-12)
    narrow = table.astype({"x": np.float32})
    assert PlainDesign.learn(narrow).transform(narrow).dtype == np.float64


def test_a_design_cannot_be_changed(table):
    with pytest.raises(dataclasses.FrozenInstanceError):
        PlainDesign.learn(table).names = ()


# --- categories


def test_levels_are_learned_in_order_with_their_shares():
    assert learn_levels(pd.Series(["b", "a", "b", None])) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert list(learn_levels(pd.Series(["b", "a", "c"]))) == ["a", "b", "c"]
    assert list(learn_levels(pd.Series([10, 9, 100]))) == [9, 10, 100]
    assert list(learn_levels(pd.Series(["b", 2, 1.5]))) == [1.5, 2, "b"]
    ordered = pd.Series(pd.Categorical(["low", "high", "low"], ["none", "low", "high"]))
    assert learn_levels(ordered) == pytest.approx({"low": 2 / 3, "high": 1 / 3})
    assert list(learn_levels(ordered)) == ["low", "high"]


def test_the_order_of_a_categorical_column_is_kept_and_what_does_not_occur_dropped(table):
    sex = pd.Categorical(table["sex"], categories=["X", "M", "F", "D"])
    ordered = table.assign(sex=sex)
    design = PlainDesign.learn(ordered)
    assert design.names[2:4] == ("sex[F]", "sex[D]")
    np.testing.assert_array_equal(design.transform(ordered), design.transform(table))


@pytest.mark.parametrize("learn", ["plain", "formula"])
def test_unseen_categories_get_the_mean_over_those_of_the_fit(learn, table):
    table["year"] = pd.Categorical(table["flag"].map({True: 2001, False: 1999}))
    table = table.drop(columns="flag")
    if learn == "plain":
        design = PlainDesign.learn(table)
    else:
        pytest.importorskip("formulaic")
        design = FormulaDesign.learn(read_formula("~ x + sex + year"), table)
    rows = table[:4].assign(
        sex=np.array(["M", "other", None, "F"], dtype=object),
        year=np.array([1999, 1999, 2050, 2050], dtype=object),
    )
    with (
        pytest.warns(UserWarning, match=r"'sex' of X has categories \['other', (None|nan)\] that the fit"),
        pytest.warns(UserWarning, match=r"'year' of X has categories \[2050\].*mean over") as caught,
    ):
        matrix = design.transform(rows)
    assert [warning.filename for warning in caught] == [__file__] * 2
    # The mean of an indicator is what centers it.
    unseen = np.array([[False, False], [True, False], [True, True], [False, True]])
    np.testing.assert_allclose(matrix[:, 2:4][unseen[:, 0]], 0.0, atol=1e-12)
    np.testing.assert_allclose(matrix[:, 4][unseen[:, 1]], 0.0, atol=1e-12)
    known = design.transform(table[:4].assign(sex=["M", "M", "M", "F"], year=[1999] * 4))
    np.testing.assert_allclose(matrix[[0, 3], 2:4], known[[0, 3], 2:4])
    np.testing.assert_allclose(matrix[:2, 4], known[:2, 4])


def test_both_designs_code_categories_alike(table):
    pytest.importorskip("formulaic")
    for frame in (table, table.assign(sex=pd.Categorical(table["sex"], ["M", "D", "F"]))):
        plain = PlainDesign.learn(frame[["x", "sex"]])
        formula = FormulaDesign.learn(read_formula("~ x + sex"), frame)
        assert [name.replace("T.", "") for name in formula.names] == list(plain.names)
        np.testing.assert_allclose(formula.transform(frame), plain.transform(frame[["x", "sex"]]), atol=1e-12)
        assert formula.indicators == plain.indicators


def test_a_column_of_one_category_gives_none(table):
    design = PlainDesign.learn(table.assign(sex="M"))
    assert design.names == ("Intercept", "x", "flag")
    assert design.widths == (1, 1, 0, 1)
    with pytest.raises(ValueError, match="random_slopes names 'sex', which is not a column of X"):
        design.column_of(["sex"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("high", "column 'x' must be numbers, as in the fit.*correct"),
        (None, r"X contains NaN or infinite values in columns \['x'\]; drop"),
        (np.inf, r"X contains NaN or infinite values in columns \['x'\]; drop"),
    ],
)
def test_numbers_stay_numbers(values, message, table):
    with pytest.raises(ValueError, match=message):
        PlainDesign.learn(table).transform(table.assign(x=values))


# --- columns by name, and contrasts


def test_columns_are_found_by_the_name_of_their_term_or_their_own(table):
    design = PlainDesign.learn(table.assign(**{"x[1]": 1.0 + table["x"] ** 2}))
    assert design.column_of(["x"]) == [1]
    assert design.column_of(["x[1]"]) == [5]
    assert design.column_of(["sex", "flag"]) == [2, 3, 4]
    assert design.column_of(["sex[M]"]) == [3]
    assert design.columns_of([0, 2]) == [0, 2, 3]
    with pytest.raises(ValueError, match=r"random_slopes names 'age', which is not a column of X; its col"):
        design.column_of(["age"])
    with pytest.raises(ValueError, match="random_slopes names 'Intercept'"):
        design.column_of(["Intercept"])
    assert PlainDesign.learn(np.eye(3)).column_of([2]) == [3]


def test_a_contrast_of_a_category_is_off_and_on_and_of_a_number_a_step_each_way(table):
    design = PlainDesign.learn(table)
    (off, on), distance = design.contrast(3, None, 0.5)
    matrix = design.transform(table)
    np.testing.assert_allclose(np.where(table["sex"] == "M", on, off), matrix[:, 3])
    assert distance == 1.0
    (down, up), distance = design.contrast(1, matrix[:, 1], 0.5)
    np.testing.assert_allclose(up - down, 1.0)
    assert distance == pytest.approx(table["x"].std(ddof=0))
